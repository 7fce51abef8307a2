"""AdamW over the tensors of a decoder, ours and torch's fused one."""

from typing import Any

import pytest
import torch
from torch import nn

from benches.shapes import LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops

MODELS = [TINY, LLAMA_200M, *([LLAMA_8B] if torch.cuda.is_available() else [])]


def tensors_of(model: ModelShape, num_layers: int, device: torch.device) -> list[nn.Parameter]:
    """Parameters with gradients: the matrices and norms of some layers, and the embedding."""
    width, hidden, kv = model.hidden_size, model.intermediate_size, model.num_kv_heads
    layer = [(width, width), (kv * model.head_dim, width), (kv * model.head_dim, width)]
    layer += [(width, width), (2 * hidden, width), (width, hidden), (width,), (width,)]
    params = [
        nn.Parameter(torch.randn(shape, device=device) / 32)
        for shape in [(model.vocab_size, width), *layer * num_layers]
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@pytest.mark.parametrize("how", ["blocks", "blocks, clipped", "torch fused"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def bench_adamw(timed, device: torch.device, model: ModelShape, how: str) -> None:
    num_layers = 2 if model is not LLAMA_8B else 3  # about 1e9 parameters
    params = tensors_of(model, num_layers, device)
    ours, theirs = (nn.Parameter(params[0].detach().clone()) for _ in range(2))
    ours.grad = theirs.grad = params[0].grad
    ops.AdamW([ours], 1e-3).step()
    torch.optim.AdamW([theirs], 1e-3, fused=True).step()
    torch.testing.assert_close(ours, theirs)
    optimizers: dict[str, Any] = {
        "blocks": lambda: ops.AdamW(params, 1e-3),
        "blocks, clipped": lambda: ops.AdamW(params, 1e-3, max_norm=1.0),
        "torch fused": lambda: torch.optim.AdamW(params, 1e-3, fused=True),
    }
    work = ops.adamw_work(sum(p.numel() for p in params))
    timed(optimizers[how]().step, work=work, dtype=torch.float32, how=how, model=model.name)
