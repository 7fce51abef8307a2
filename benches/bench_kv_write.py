"""blocks.kv from projection to cache: quantised writes, the fused write, blocks between caches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benches.bench_kv import BLOCK_SIZE
from benches.shapes import MODELS
from blocks import ops
from blocks.kv import (
    rope_write_kv,
    rope_write_kv_work,
    swap_blocks,
    swap_blocks_work,
    write_kv,
    write_kv_work,
)
from tests.numerics import assert_close

NUM_BLOCKS = 1024
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}


class WriteCase:
    """One layer's new tokens as views of a fused bf16 projection, and pages of some dtype.

    ``fused`` and ``unfused`` do the same work, in one call and in one for each operation.
    """

    def __init__(
        self, model: str, num_tokens: int, device: torch.device, *, cache: str, normed: bool
    ) -> None:
        self.shape = shape = MODELS[model]
        heads, dim = (shape.num_heads, *[shape.num_kv_heads] * 2), shape.head_dim
        projected = torch.randn(num_tokens, sum(heads) * dim, device=device).bfloat16()
        self.query, self.key, self.value = projected.unflatten(1, (-1, dim)).split(heads, dim=1)
        self.positions = torch.arange(num_tokens, device=device)
        self.table = ops.rope_table(ops.rope_frequencies(dim), 16384, device=device)
        pages = (NUM_BLOCKS, BLOCK_SIZE, shape.num_kv_heads)
        self.caches = [torch.zeros(*pages, dim, device=device).to(DTYPES[cache]) for _ in range(2)]
        self.slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, device=device)[:num_tokens]
        weight = torch.rand(dim, device=device).bfloat16() + 0.5
        self.norms = {"query_norm": weight, "key_norm": weight} if normed else {}
        self.scales: dict[str, Any] = {}
        if cache != "bf16":
            self.scales = {
                name: torch.zeros(pages, device=device) for name in ("k_scale", "v_scale")
            }
        self.cache = cache

    def write(self, key: Tensor, impl: str | None = None) -> None:
        caches = (self.caches[0], self.caches[1], self.slots)
        write_kv(key, self.value, *caches, **self.scales, impl=impl)

    def fused(self) -> Tensor:
        given = (self.query, self.key, self.value, self.positions, self.table)
        caches = (self.caches[0], self.caches[1], self.slots)
        return rope_write_kv(*given, *caches, **self.norms, **self.scales)

    def unfused(self) -> Tensor:
        query, key = self.query, self.key
        if self.norms:
            query = ops.rms_norm(query, self.norms["query_norm"])
            key = ops.rms_norm(key, self.norms["key_norm"])
        query, key = ops.apply_rope(query, key, self.positions, self.table)
        self.write(key)
        return query

    def written(self, call: Callable[[], object]) -> Tensor:
        """The tokens' keys as they read after ``call``: [num_tokens, num_kv_heads, head_dim]."""
        call()
        where = (self.slots // BLOCK_SIZE, self.slots % BLOCK_SIZE)
        if not self.scales:
            return self.caches[0][where]
        codes = self.caches[0].view(torch.uint8)[where].view(self.caches[0].dtype)
        return codes.float() * self.scales["k_scale"][where].unsqueeze(-1)

    @property
    def cache_work(self) -> dict[str, Any]:
        return {"cache_itemsize": self.caches[0].element_size(), "token_scales": bool(self.scales)}


@pytest.mark.parametrize("cache", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("how", ["fused", "unfused"])
@pytest.mark.parametrize("num_tokens", [1, 32, 2048])
@pytest.mark.parametrize("model", ["llama200m", "qwen3"])
def bench_rope_write_kv(timed, device, model, num_tokens, how, cache):
    case = WriteCase(model, num_tokens, device, cache=cache, normed=model == "qwen3")
    with torch.inference_mode():
        assert_close(case.fused(), case.unfused(), slack=2.0)
        keys = case.written(case.fused).bfloat16()
        assert_close(keys, case.written(case.unfused).bfloat16(), slack=2.0)
        shape = case.shape
        sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.head_dim, 2)
        work = rope_write_kv_work(num_tokens, *sizes, **case.cache_work)
        timed(getattr(case, how), work=work, num_tokens=num_tokens, model=model, cache=cache)


@pytest.mark.parametrize("impl", [None, "torch"], ids=["default", "torch"])
@pytest.mark.parametrize("cache", ["fp8", "int8"])
@pytest.mark.parametrize("num_tokens", [1, 32, 2048])
@pytest.mark.parametrize("model", ["llama200m", "llama8b"])
def bench_write_kv_quantised(timed, device, model, num_tokens, cache, impl):
    case = WriteCase(model, num_tokens, device, cache=cache, normed=False)
    found = case.written(lambda: case.write(case.key, impl))
    slow = "reference" if num_tokens < 100 else "torch"
    expected = case.written(lambda: case.write(case.key, slow))
    assert torch.equal(found, expected)
    error = (found - case.key.float()).abs().amax(-1) / case.key.float().abs().amax(-1)
    assert error.max() < 1 / 16, "half a step of the largest element"
    shape = case.shape
    work = write_kv_work(num_tokens, shape.num_kv_heads, shape.head_dim, 2, **case.cache_work)
    timed(lambda: case.write(case.key, impl), work=work, num_tokens=num_tokens, cache=cache)


@pytest.mark.parametrize("num_pairs", [1, 64])
def bench_swap_blocks(timed, device, num_pairs):
    """Blocks of all layers from a device to the host (pinned where there is a device)."""
    shape = MODELS["llama200m"]
    block = (BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    source = torch.randn(2 * shape.num_layers, num_pairs + 1, *block, device=device).bfloat16()
    target = torch.zeros(source.shape, dtype=source.dtype, pin_memory=device.type == "cuda")
    pairs = [(number, num_pairs - number) for number in range(num_pairs)]
    swap_blocks(source, target, pairs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    assert torch.equal(target[:, num_pairs], source[:, 0].cpu())
    work = swap_blocks_work(num_pairs, source.shape[0], source[0, 0].nbytes)
    timed(lambda: swap_blocks(source, target, pairs), work=work, num_pairs=num_pairs)
