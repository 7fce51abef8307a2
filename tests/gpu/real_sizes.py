"""Inputs of every kernel at the sizes of real models; small ones prove the same code on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benches.cases import PackedCase, PagedCase
from benches.cases_ops import normal
from benches.matrix.row import Setting
from blocks import ops

Given = dict[str, Any]
LENS = [4096, 1, 777, 16, 0, 2049]
"""Context lengths of one batch: long, one token, odd, one block, none, one past a tile."""


def heads(setting: Setting, num_heads: int = 32, num_kv_heads: int = 8, head_dim: int = 128):
    """Sizes of a PagedCase or PackedCase."""
    group = num_heads // num_kv_heads
    return {
        "num_heads": setting.size(num_heads, 2 * group),
        "num_kv_heads": setting.size(num_kv_heads, 2),
        "head_dim": setting.size(head_dim, 32),
        "dtype": torch.float32 if setting.tiny else torch.bfloat16,
        "device": setting.device,
    }


def lens(setting: Setting) -> list[int]:
    return [min(n, 40) for n in LENS] if setting.tiny else LENS


def paged(case: PagedCase) -> Given:
    return {
        "query": case.query,
        "key_cache": case.key_cache,
        "value_cache": case.value_cache,
        "block_table": case.block_table,
        "seq_lens": case.seq_lens,
    }


def decode(setting: Setting, **sizes: int) -> Given:
    return paged(PagedCase.random(lens(setting), **heads(setting, **sizes)))


def chunk_lens(setting: Setting) -> list[int]:
    return [min(n, setting.size(512, 7)) for n in lens(setting)]


def extend(setting: Setting, **sizes: int) -> Given:
    case = PagedCase.random(lens(setting), chunk_lens(setting), **heads(setting, **sizes))
    return {**paged(case), "cu_seqlens_q": case.cu_seqlens_q}


def prefill(setting: Setting, **sizes: int) -> Given:
    case = PackedCase.random(2, setting.size(2048, 33), **heads(setting, **sizes))
    query, key, value = case.tensors
    return {"query": query, "key": key, "value": value, "cu_seqlens_q": case.cu_seqlens}


def tree(setting: Setting) -> Given:
    counts = [min(n, 8) for n in lens(setting)]
    case = PagedCase.random(lens(setting), counts, **heads(setting))
    from blocks.attention import tree_mask_from_parents

    parents = torch.cat([torch.arange(n) // 2 - (torch.arange(n) == 0).int() for n in counts])
    bounds = case.cu_seqlens_q
    mask = tree_mask_from_parents(parents.int().to(setting.device), bounds)
    return {**paged(case), "cu_seqlens_q": bounds, "tree_mask": mask}


def mla(setting: Setting) -> Given:
    latent, rotary = setting.size(512, 64), setting.size(64, 16)
    case = PagedCase.random(
        lens(setting), **{**heads(setting, 16, 1), "num_kv_heads": 1, "head_dim": latent + rotary}
    )
    given = paged(case)
    del given["value_cache"]
    cache = given.pop("key_cache")[:, :, 0].contiguous()
    return {**given, "latent_cache": cache, "scale": 0.05, "latent_dim": latent}


def merge(setting: Setting) -> Given:
    shape = (setting.size(16, 3), setting.size(128, 4), setting.size(32, 2))
    outputs = normal(*shape, setting.size(128, 16), device=setting.device)
    return {"outputs": outputs, "lses": normal(*shape, device=setting.device).float()}


def write(setting: Setting) -> Given:
    tokens, size = setting.size(8192, 9), setting.size(128, 16)
    shape = (-(-tokens // 16) + 3, 16, setting.size(8, 2), size)
    device = setting.device
    caches = [normal(*shape, device=device) for _ in range(2)]
    new = [normal(tokens, *shape[2:], device=device).flip(0) for _ in range(2)]
    slots = torch.randperm(shape[0] * 16, device=device)[:tokens]
    slots[1] = -1
    return {
        "key": new[0],
        "value": new[1],
        "key_cache": caches[0],
        "value_cache": caches[1],
        "slot_mapping": slots,
    }


def copies(setting: Setting) -> Given:
    pairs = setting.size(500, 3)
    planes = normal(setting.size(64, 2), 2 * pairs, 16, 8, 128, device=setting.device)
    return {"planes": planes, "pairs": [(i, 2 * pairs - 1 - i) for i in range(pairs)]}


def norm(setting: Setting, hidden: int = 4096, layer: bool = False) -> Given:
    shape = (setting.size(4096, 5), setting.size(hidden, 48))
    device = setting.device
    given = {"x": normal(*shape, device=device), "weight": normal(shape[1], device=device)}
    given["residual"] = given["x"].flip(0)
    return {**given, "bias": given["weight"].flip(0)} if layer else given


def rotary(setting: Setting) -> Given:
    tokens, size, device = setting.size(4096, 6), setting.size(128, 16), setting.device
    table = ops.rope_table(ops.rope_frequencies(size), 2 * tokens).to(device)
    return {
        "query": normal(tokens, setting.size(32, 4), size, device=device),
        "key": normal(tokens, setting.size(8, 2), size, device=device),
        "positions": torch.arange(tokens, device=device).flip(0),
        "cos_sin": table,
    }


def rows(setting: Setting, name: str, num_rows: int, width: int) -> Given:
    return {name: normal(setting.size(num_rows, 5), setting.size(width, 64), device=setting.device)}


def labels(logits_rows: int, vocab: int, device: torch.device) -> Tensor:
    found = torch.arange(logits_rows, device=device) * 7919 % vocab
    found[0] = -100
    return found


def loss(setting: Setting) -> Given:
    given = rows(setting, "logits", 2048, 128256)
    count, vocab = given["logits"].shape
    return {**given, "labels": labels(count, vocab, setting.device)}


def linear_loss(setting: Setting) -> Given:
    count, width, vocab = (
        setting.size(2048, 5),
        setting.size(2048, 32),
        setting.size(32000, 99),
    )
    weight = normal(vocab, width, device=setting.device) * width**-0.5
    hidden = normal(count, width, device=setting.device)
    return {"hidden": hidden, "weight": weight, "labels": labels(count, vocab, setting.device)}


def grouped(setting: Setting) -> Given:
    count, width, out = setting.size(4096, 20), setting.size(2048, 64), setting.size(768, 32)
    bounds = [0, count // 3, count // 3, count - 1, count]
    weight = normal(4, out, width, device=setting.device) * width**-0.5
    return {
        "x": normal(count, width, device=setting.device),
        "weight": weight,
        "offsets": torch.tensor(bounds, dtype=torch.int32, device=setting.device),
    }


REAL: dict[str, Callable[[Setting], Given]] = {
    "attention.merge_states": merge,
    "attention.mla_decode": mla,
    "attention.paged_decode": decode,
    "attention.paged_extend": extend,
    "attention.prefill": prefill,
    "attention.tree_decode": tree,
    "kv.copy_blocks": copies,
    "kv.write_kv": write,
    "ops.apply_rope": rotary,
    "ops.cross_entropy": loss,
    "ops.gelu": lambda setting: rows(setting, "x", 4096, 4096),
    "ops.gelu_and_mul": lambda setting: rows(setting, "gate_up", 4096, 28672),
    "ops.grouped_linear": grouped,
    "ops.layer_norm": lambda setting: norm(setting, 12288, layer=True),
    "ops.linear_cross_entropy": linear_loss,
    "ops.relu": lambda setting: rows(setting, "x", 4096, 4096),
    "ops.rms_norm": norm,
    "ops.silu_and_mul": lambda setting: rows(setting, "gate_up", 4096, 28672),
}
"""Every kernel whose small inputs in the contract table leave something to be seen."""

SLACK = {"ops.linear_cross_entropy": 200.0}
"""On the tolerance of float32: its logits pass through bf16 on the way to a float32 loss."""
