"""Every public tensor operation of attention, kv and ops, once: what the contract tests call.

A new operation gets an entry here: a maker of small inputs, and the name of its ``*_work``.
``python -m tests.contract_table`` prints, as JSON, what each operation says to wrong arguments; it
runs in a process of its own because the test run replaces those answers by its type checks.
"""

import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from blocks._checks import number_kinds

BLOCKS = ("attention", "kv", "ops")
HOW = ("impl", "inplace", "num_splits", "batch_invariant", "chunk_bytes", "accumulate_dtype")
"""Parameters that say how, never what: a reference need not have them."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """What the contract tests need to know of one operation.

    make: small inputs by parameter name.
    work: name of the function in the same block that declares its work; empty where the operation
        has no fast path and is its own specification.
    written: parameters written in place.
    any_shape: tensor parameters no shape of which is wrong.
    any_dtype: tensor parameters that take integers and floats alike.
    slack: on the tolerance between implementations, for long sums.
    """

    make: Callable[[], dict[str, Any]]
    work: str = ""
    written: tuple[str, ...] = ()
    any_shape: tuple[str, ...] = ()
    any_dtype: tuple[str, ...] = ()
    slack: float = 4.0


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def int32(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def paged() -> dict[str, Any]:
    """Two sequences of 20 and 17 tokens over blocks of 16."""
    return {
        "query": normal(2, 4, 32),
        "key_cache": normal(6, 16, 2, 32),
        "value_cache": normal(6, 16, 2, 32) + 1,
        "block_table": int32([4, 1], [5, 2]),
        "seq_lens": int32(20, 17),
    }


def packed() -> dict[str, Any]:
    return {
        "query": normal(5, 4, 32),
        "key": normal(9, 2, 32),
        "value": normal(9, 2, 32) + 1,
        "cu_seqlens_q": int32(0, 2, 5),
        "cu_seqlens_k": int32(0, 4, 9),
    }


def extend() -> dict[str, Any]:
    return {**paged(), "query": normal(5, 4, 32), "cu_seqlens_q": int32(0, 2, 5)}


def shared() -> dict[str, Any]:
    from blocks.attention import SharedPrefix

    table = int32([4, 1], [4, 2])
    return {
        **paged(),
        "block_table": table,
        "prefixes": [SharedPrefix(int32(0, 2), int32(16))],
    }


def drafts() -> dict[str, Any]:
    return {**extend(), "tree_mask": torch.tensor([1, 3, 1, 3, 5])}


def token_slice() -> dict[str, Any]:
    """Tokens 3 to 5 of a sequence whose buffers hold 7."""
    return {
        "query": normal(2, 4, 32),
        "key": normal(7, 2, 32),
        "value": normal(7, 2, 32) + 1,
        "start": 3,
    }


def slice_gradients() -> dict[str, Any]:
    from blocks.attention import reference

    given = token_slice()
    output, lse = reference.slice_attention(**given)
    sums = {"grad_key": normal(7, 2, 32) + 2, "grad_value": normal(7, 2, 32) + 3}
    return {"grad_output": normal(2, 4, 32), **given, "output": output, "lse": lse, **sums}


def latents() -> dict[str, Any]:
    given = paged()
    del given["key_cache"], given["value_cache"]
    cache = normal(6, 16, 80)
    return {
        **given,
        "query": normal(2, 4, 80),
        "latent_cache": cache,
        "scale": 0.1,
        "latent_dim": 64,
    }


def new_tokens() -> dict[str, Any]:
    cache = {"key_cache": normal(3, 4, 2, 8), "value_cache": normal(3, 4, 2, 8)}
    new = {"key": normal(3, 2, 8), "value": normal(3, 2, 8) + 1}
    return {**new, **cache, "slot_mapping": torch.tensor([9, -1, 2])}


def rotary() -> dict[str, Any]:
    from blocks.ops import rope_frequencies, rope_table

    return {
        "query": normal(3, 4, 16),
        "key": normal(3, 2, 16),
        "positions": torch.tensor([0, 5, 2]),
        "cos_sin": rope_table(rope_frequencies(16), 8),
    }


def rope_and_write() -> dict[str, Any]:
    new = {**new_tokens(), **rotary()}
    for name, dims in (("query", (3, 4, 8)), ("key", (3, 2, 8)), ("cos_sin", (8, 6))):
        new[name] = normal(*dims)
    return {**new, "query_norm": normal(8), "key_norm": normal(8)}


def experts() -> dict[str, Any]:
    from blocks.ops import route

    matrices = {"gate_up": normal(3, 8, 6), "down": normal(3, 6, 4)}
    return {"x": normal(5, 6), **matrices, "routing": route(normal(5, 3), 2)}


def few_bits() -> dict[str, Any]:
    from blocks.ops import quantize_weight

    return {"x": normal(3, 12), "weight": quantize_weight(normal(5, 12)), "bias": normal(5)}


def labelled(**more: Tensor) -> dict[str, Any]:
    return {**more, "labels": torch.tensor([4, -100, 0])}


def coordinates(**more: Any) -> dict[str, Any]:
    where = {"rows": torch.tensor([0, 0, 1]), "token_ids": torch.tensor([3, 1, 0])}
    return {"logits": normal(2, 7), **where, **more}


TABLE = {
    "attention.cascade_decode": Operation(shared, "cascade_decode_work"),
    "attention.merge_states": Operation(
        lambda: {"outputs": normal(3, 2, 4, 8), "lses": normal(3, 2, 4)},
        "merge_states_work",
        any_shape=("outputs",),
    ),
    "attention.mla_decode": Operation(latents, "mla_decode_work"),
    "attention.paged_decode": Operation(paged, "paged_decode_work"),
    "attention.paged_extend": Operation(extend, "paged_extend_work"),
    "attention.prefill": Operation(packed, "prefill_work"),
    "attention.slice_attention": Operation(token_slice, "slice_attention_work"),
    "attention.slice_attention_backward": Operation(
        slice_gradients, "slice_attention_backward_work", written=("grad_key", "grad_value")
    ),
    "attention.tree_decode": Operation(drafts, "tree_decode_work"),
    "attention.tree_mask_from_parents": Operation(
        lambda: {"parents": int32(-1, 0, -1, 0, 0), "cu_seqlens_q": int32(0, 2, 5)},
        any_shape=("parents", "cu_seqlens_q"),
    ),
    "kv.copy_blocks": Operation(
        lambda: {"planes": normal(2, 5, 3, 4), "pairs": [(0, 2), (2, 1), (4, 0)]},
        "copy_blocks_work",
        written=("planes",),
        any_shape=("planes",),
        any_dtype=("planes",),
    ),
    "kv.rope_write_kv": Operation(
        rope_and_write,
        "rope_write_kv_work",
        written=("key_cache", "value_cache"),
    ),
    "kv.swap_blocks": Operation(
        lambda: {
            "source": normal(2, 5, 3, 4),
            "target": normal(2, 4, 3, 4),
            "pairs": [(0, 2), (2, 1), (4, 0)],
        },
        "swap_blocks_work",
        written=("target",),
    ),
    "kv.write_kv": Operation(new_tokens, "write_kv_work", written=("key_cache", "value_cache")),
    "ops.adamw_step": Operation(
        lambda: {
            "params": [normal(3, 4), normal(5)],
            "grads": [normal(3, 4), normal(5)],
            "exp_avgs": [normal(3, 4), normal(5)],
            "exp_avg_sqs": [normal(3, 4).square(), normal(5).square()],
            "step": 3,
            "lr": 0.1,
            "max_norm": 1.0,
        },
        "adamw_work",
        written=("params", "exp_avgs", "exp_avg_sqs"),
    ),
    "ops.add_logit_bias": Operation(
        lambda: coordinates(bias=normal(3)),
        "penalties_work",
        written=("logits",),
        any_shape=("logits",),
    ),
    "ops.apply_penalties": Operation(
        lambda: coordinates(output_counts=torch.tensor([1, 0, 2]), repetition=1.3, presence=0.2),
        "penalties_work",
        written=("logits",),
        any_shape=("logits",),
    ),
    "ops.apply_rope": Operation(rotary, "rope_work"),
    "ops.cross_entropy": Operation(
        lambda: labelled(logits=normal(3, 50)), "cross_entropy_work", any_shape=("logits",)
    ),
    "ops.gelu": Operation(lambda: {"x": normal(3, 5)}, "activation_work", any_shape=("x",)),
    "ops.gelu_and_mul": Operation(lambda: {"gate_up": normal(3, 10)}, "gated_work"),
    "ops.grouped_linear": Operation(
        lambda: {"x": normal(4, 12), "weight": normal(3, 5, 12), "offsets": int32(0, 1, 1, 3)},
        "grouped_linear_work",
    ),
    "ops.layer_norm": Operation(
        lambda: {"x": normal(3, 12), "weight": normal(12), "bias": normal(12)}, "norm_work"
    ),
    "ops.linear": Operation(
        lambda: {"x": normal(3, 12), "weight": normal(5, 12), "bias": normal(5)}, "linear_work"
    ),
    "ops.moe": Operation(experts, "moe_work"),
    "ops.quant_linear": Operation(few_bits, "quant_linear_work"),
    "ops.quantize_rows": Operation(
        lambda: {"x": -normal(3, 12).abs()}, "quantize_rows_work", any_shape=("x",)
    ),
    "ops.quantize_weight": Operation(lambda: {"weight": normal(3, 12)}, any_shape=("weight",)),
    "ops.linear_cross_entropy": Operation(
        lambda: labelled(hidden=normal(3, 12), weight=normal(50, 12), bias=normal(50)),
        "linear_cross_entropy_work",
    ),
    "ops.relu": Operation(lambda: {"x": normal(3, 5)}, "activation_work", any_shape=("x",)),
    "ops.rms_norm": Operation(
        lambda: {"x": normal(3, 12), "weight": normal(12), "residual": normal(3, 12)}, "norm_work"
    ),
    "ops.route": Operation(
        lambda: {"router_logits": normal(5, 4), "top_k": 2, "bias": normal(4)}, "route_work"
    ),
    "ops.sample": Operation(
        lambda: {"logits": normal(3, 50), "top_k": 5, "seeds": 3},
        "sample_work",
        any_shape=("logits",),
    ),
    "ops.silu_and_mul": Operation(lambda: {"gate_up": normal(3, 10)}, "gated_work"),
    "ops.top_logprobs": Operation(
        lambda: {"logits": normal(2, 7), "token_ids": torch.tensor([3, 1]), "num_top": 2},
        "top_logprobs_work",
        any_shape=("logits",),
    ),
}


def public_operations() -> set[str]:
    """``block.name`` of every exported function that takes a tensor."""
    found = set()
    for block in BLOCKS:
        package = importlib.import_module(f"blocks.{block}")
        for name in package.__all__:
            function = getattr(package, name)
            if inspect.isfunction(function) and any(
                "Tensor" in str(p.annotation) for p in parameters(function).values()
            ):
                found.add(f"{block}.{name}")
    return found


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(inspect.unwrap(function)).parameters)


def operation(name: str) -> Callable[..., Any]:
    block, _, function = name.partition(".")
    return getattr(importlib.import_module(f"blocks.{block}"), function)


def reference_of(name: str) -> Callable[..., Any] | None:
    block, _, function = name.partition(".")
    return getattr(importlib.import_module(f"blocks.{block}.reference"), function, None)


def tensors(found: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(found, Tensor):
        return [found]
    return [t for part in found for t in tensors(part)] if isinstance(found, tuple | list) else []


def call(name: str, given: dict[str, Any], **options: Any) -> list[Tensor]:
    """Call an operation on copies of its inputs; what it returned and what it wrote in place."""
    copies = {k: copied(v) for k, v in given.items()}
    found = tensors(operation(name)(**copies, **options))
    return [*found, *(t for written in TABLE[name].written for t in tensors(copies[written]))]


def copied(value: Any) -> Any:
    if isinstance(value, list):
        return [copied(part) for part in value]
    return value.clone() if isinstance(value, Tensor) else value


def wrong_arguments(name: str) -> Iterator[tuple[str, str, Any]]:
    """(parameter, what is wrong, value) for every tensor parameter of an operation."""
    entry = TABLE[name]
    given = entry.make()
    several = sum(isinstance(value, Tensor) for value in given.values()) > 1
    for parameter, value in given.items():
        if not isinstance(value, Tensor):
            continue
        yield parameter, "no tensor", "text"
        yield parameter, "a list", value.tolist()
        if parameter not in entry.any_dtype:
            yield parameter, "dtype", value.long() if value.is_floating_point() else value.double()
        if parameter not in entry.any_shape:
            yield parameter, "shape", value[..., :-1]
        if several:
            yield parameter, "device", value.to("meta")
    for parameter, known in inspect.signature(operation(name)).parameters.items():
        if number_kinds(known.annotation):
            yield parameter, "no number", "text"


def answers() -> list[dict[str, str]]:
    """What every operation says to each wrong argument."""
    found = []
    for name in TABLE:
        for parameter, wrong, value in wrong_arguments(name):
            given = {**TABLE[name].make(), parameter: value}
            try:
                operation(name)(**given)
                kind, message = "accepted", ""
            except Exception as error:
                kind, message = type(error).__name__, str(error)
            found.append(
                {
                    "operation": name,
                    "parameter": parameter,
                    "wrong": wrong,
                    "kind": kind,
                    "message": message,
                }
            )
    return found


if __name__ == "__main__":
    print(json.dumps(answers()))
