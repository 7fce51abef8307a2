"""One decode step of a whole model through pages, beside a bare step in plain torch.

The bare step is the least that eager torch can do: contiguous caches, no pages, no scheduler, no
module; its weights are the decoder's own, fused the same way.
"""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benches.shapes import LLAMA_200M, TINY, ModelShape
from blocks._work import Work
from blocks.kv import KVCache
from recipes.model import Decoder, ModelConfig, decode_attend, init_weights

MODELS = [TINY, LLAMA_200M]
ROWS = [1, 8, 32]
CONTEXT, BLOCK_SIZE = 256, 16
Step = Callable[[], Tensor]


@functools.cache
def make_decoder(shape: ModelShape, device: torch.device) -> Decoder:
    """A Llama of this shape in bfloat16 with random weights and tied embeddings."""
    config = ModelConfig(
        family="llama",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_positions=2 * CONTEXT,
        tie_embeddings=True,
        dtype="bfloat16",
    )
    decoder = Decoder(config, device=device)
    init_weights(decoder, torch.Generator(device).manual_seed(0))
    return decoder


def contexts(decoder: Decoder, num_rows: int) -> Tensor:
    """Random keys and values: [num_layers, 2, num_rows, CONTEXT, num_kv_heads, head_dim]."""
    config, device = decoder.config, decoder.embed.weight.device
    generator = torch.Generator(device).manual_seed(num_rows)
    shape = (config.num_layers, 2, num_rows, CONTEXT, config.num_kv_heads, config.head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)


def paged_step(decoder: Decoder, num_rows: int) -> Step:
    """The step as the engine runs it: the next token's logits of every row."""
    config, device = decoder.config, decoder.embed.weight.device
    per_row = CONTEXT // BLOCK_SIZE + 1
    cache = KVCache(
        1 + num_rows * per_row,
        num_layers=config.num_layers,
        block_size=BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
        device=device,
    )
    table = torch.randperm(num_rows * per_row).view(num_rows, per_row).int().to(device) + 1
    paged = "layer kv row (block offset) head dim -> layer kv row block offset head dim"
    full = rearrange(contexts(decoder, num_rows), paged, offset=BLOCK_SIZE)
    cache.storage[:, :, table[:, :-1].long()] = full
    seq_lens = torch.full((num_rows,), CONTEXT + 1, dtype=torch.int32, device=device)
    positions = torch.full((num_rows,), CONTEXT, device=device)
    slots = table[:, -1].long() * BLOCK_SIZE
    tokens = torch.arange(num_rows, device=device)

    def step() -> Tensor:
        attend = decode_attend(config, cache, table, seq_lens, slots)
        return decoder.logits(decoder(tokens, positions, attend))

    return step


def bare_step(decoder: Decoder, num_rows: int) -> Step:
    """The same step in plain eager torch over contiguous caches."""
    config, device = decoder.config, decoder.embed.weight.device
    caches = F.pad(contexts(decoder, num_rows), (0, 0, 0, 0, 0, 1))
    by_head = "layer kv row token head dim -> layer kv row head token dim"
    caches = rearrange(caches, by_head).contiguous()
    tokens = torch.arange(num_rows, device=device)
    weights = {name: p.detach() for name, p in decoder.named_parameters()}
    layers = [
        tuple(weights[f"layers.{i}.{part}.weight"] for part in PARTS)
        for i in range(config.num_layers)
    ]
    embed, last, eps = weights["embed.weight"], weights["final_norm.weight"], config.norm_eps
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    cos, sin = decoder.cos_sin[CONTEXT].bfloat16().chunk(2)  # type: ignore[index]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def step() -> Tensor:
        x = embed[tokens]
        for (norm1, qkv, out, norm2, gate_up, down), (keys, values) in zip(
            layers, caches, strict=True
        ):
            q, k, v = (
                F.linear(norm(x, norm1), qkv).unflatten(-1, (-1, config.head_dim)).split(heads, 1)
            )
            keys[:, :, CONTEXT] = turn(k)
            values[:, :, CONTEXT] = v
            grouped = turn(q).unflatten(1, (config.num_kv_heads, -1))
            y = F.scaled_dot_product_attention(grouped, keys, values)
            x = x + F.linear(y.flatten(1), out)
            gate, up = F.linear(norm(x, norm2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(norm(x, last), embed)

    return step


PARTS = ("attention_norm", "attention.qkv", "attention.out", "mlp_norm", "mlp.gate_up", "mlp.down")


def step_work(decoder: Decoder, num_rows: int) -> Work:
    """Every weight and every key and value once; a multiply-add for each weight and row."""
    config = decoder.config
    weights = sum(p.numel() for p in decoder.parameters())
    context = num_rows * (CONTEXT + 1)
    scores = 4 * context * config.num_layers * config.num_heads * config.head_dim
    return Work(
        2 * weights * num_rows + scores, 2 * weights + context * config.kv_bytes_per_token(2)
    )


def check_steps_agree(decoder: Decoder, num_rows: int) -> tuple[Step, Step]:
    """Both steps, after comparing their logits."""
    ours, bare = paged_step(decoder, num_rows), bare_step(decoder, num_rows)
    with torch.inference_mode():
        got, expected = ours().float(), bare().float()
    error = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03, f"logits differ by {error:.1%}"
    return ours, bare


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def bench_decode_step(timed, device: torch.device, shape: ModelShape, num_rows: int) -> None:
    decoder = make_decoder(shape, device)
    ours, _ = check_steps_agree(decoder, num_rows)
    with torch.inference_mode():
        timed(ours, work=step_work(decoder, num_rows), model=shape.name, num_rows=num_rows)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def bench_bare_torch_step(timed, device: torch.device, shape: ModelShape, num_rows: int) -> None:
    decoder = make_decoder(shape, device)
    _, bare = check_steps_agree(decoder, num_rows)
    with torch.inference_mode():
        timed(bare, work=step_work(decoder, num_rows), model=shape.name, num_rows=num_rows)
