"""Serving attention over pages: quantised caches, trees of drafts, shared prefixes."""

import pytest
import torch
from einops import reduce

from benches.bench_attention import inputs, sizes
from benches.shapes import LLAMA_8B, LLAMA_200M, ModelShape
from blocks._work import Work
from blocks.attention import (
    SharedPrefix,
    cascade_decode,
    cascade_decode_work,
    paged_decode,
    paged_decode_work,
    reference,
    tree_decode,
    tree_decode_work,
    tree_mask_from_parents,
)
from tests.numerics import assert_close

STORED = {"bf16": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
MODELS = [
    pytest.param(LLAMA_200M, 8, 2048, id="llama200m-b8-ctx2k"),
    pytest.param(LLAMA_8B, 4, 2048, id="llama8b-b4-ctx2k"),
]
SHARED = [
    pytest.param(LLAMA_200M, 16, 2048, 64, id="llama200m-b16-shared2k-own64"),
    pytest.param(LLAMA_8B, 8, 1024, 64, id="llama8b-b8-shared1k-own64"),
]


def quantised(cache: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in ``stored`` and their scales: by head for float8, by token and head for int8."""
    most = 448.0 if stored == torch.float8_e4m3fn else 127.0
    kept = "head" if stored == torch.float8_e4m3fn else "block offset head"
    scale = reduce(cache.float().abs(), f"block offset head dim -> {kept}", "max") / most
    numbers = cache.float() / scale[..., None]
    numbers = numbers.round() if stored == torch.int8 else numbers
    return numbers.to(stored), scale


def quantised_inputs(model: ModelShape, batch: int, context: int, stored: str, device):
    """Arguments of a decode, its scales, and its work."""
    query, keys, values, *rest, _ = inputs(model, batch, 1, context, device)
    dtype = STORED[stored]
    if dtype is None:
        work = paged_decode_work([context] * batch, **sizes(model))
        return (query, keys, values, *rest), {}, work
    (keys, k_scale), (values, v_scale) = quantised(keys, dtype), quantised(values, dtype)
    kind = "head" if stored == "fp8" else "token"
    work = paged_decode_work([context] * batch, **sizes(model), kv_itemsize=1, scale_kind=kind)
    return (query, keys, values, *rest), {"k_scale": k_scale, "v_scale": v_scale}, work


def tree_inputs(model: ModelShape, batch: int, context: int, num_drafts: int, device):
    """Arguments of ``tree_decode``: a binary tree of drafts a sequence."""
    query, keys, values, table, lens, bounds = inputs(model, batch, num_drafts, context, device)
    parents = torch.tensor([(i - 1) // 2 if i else -1 for i in range(num_drafts)], device=device)
    mask = tree_mask_from_parents(parents.int().repeat(batch), bounds)
    return query, keys, values, table, lens, bounds, mask


def shared_inputs(model: ModelShape, batch: int, shared: int, own: int, device):
    """Arguments of ``paged_decode`` whose first ``shared`` tokens lie in the same blocks."""
    query, keys, values, table, lens, _ = inputs(model, batch, 1, shared + own, device)
    table[:, : shared // keys.shape[1]] = table[0, : shared // keys.shape[1]]
    bounds = torch.tensor([0, batch], dtype=torch.int32, device=device)
    prefix = SharedPrefix(bounds, torch.tensor([shared], dtype=torch.int32, device=device))
    return (query, keys, values, table, lens), [prefix]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("model", "batch", "context"), MODELS)
def bench_quantised_decode(timed, device, model, batch, context, stored):
    given, scales, work = quantised_inputs(model, batch, context, stored, device)

    def call() -> torch.Tensor:
        return paged_decode(*given, **scales)

    assert_close(call(), reference.paged_decode(*given, **scales))
    timed(call, work=work, stored=stored)


@pytest.mark.parametrize("num_drafts", [1, 4, 8])
@pytest.mark.parametrize(("model", "batch", "context"), MODELS)
def bench_tree_decode(timed, device, model, batch, context, num_drafts):
    given = tree_inputs(model, batch, context, num_drafts, device)
    assert_close(tree_decode(*given), reference.tree_decode(*given))
    lens = [num_drafts] * batch, [context] * batch
    timed(lambda: tree_decode(*given), work=tree_decode_work(*lens, **sizes(model)))


@pytest.mark.parametrize("how", ["cascade", "decode"])
@pytest.mark.parametrize(("model", "batch", "shared", "own"), SHARED)
def bench_cascade_decode(timed, device, model, batch, shared, own, how):
    given, prefixes = shared_inputs(model, batch, shared, own, device)
    calls = {
        "cascade": lambda: cascade_decode(*given, prefixes),
        "decode": lambda: paged_decode(*given),
    }
    assert_close(calls[how](), reference.paged_decode(*given))
    lens = [shared + own] * batch
    work: Work = cascade_decode_work(lens, [(batch, shared)], **sizes(model))
    timed(calls[how], work=work, how=how)
