"""Rows of ``benches.figures.ops`` that multiply: weights in few bits, mixtures of experts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benches import machine
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M as MODEL
from blocks import ops

CPU = torch.device("cpu")
COMMAND = "make figures AREA=ops"
NUM_LAYERS = 16
EXPERTS, TOP_K, HIDDEN, INNER = 8, 2, 1024, 1408


def rows() -> Iterator[Row]:
    """int8, fp8 and int4 weights at 1 and 32 rows; int8 all through; experts against a loop."""
    for format, num_rows, target in (
        ("int8", 1, 1.3),
        ("fp8", 1, 1.2),
        ("int4", 1, 2.0),
        ("int8", 32, None),
        ("int4", 32, None),
    ):
        yield Row(
            f"`quant_linear`, {format}, {num_rows} row(s) against `linear` in bf16",
            f">= {target}x" if target else "",
            COMMAND,
            functools.partial(_quant, format, num_rows, target),
        )
    yield Row(
        "`quant_linear`, int8 with rounded input, 128 rows against torch's bf16",
        ">= 1.1x",
        COMMAND,
        functools.partial(_rounded, 128, 1.1),
    )
    for num_tokens, target in ((1, 1.2), (16, 1.1), (128, None)):
        yield Row(
            f"`route` and `moe`, bf16, {num_tokens} token(s), 2 of 8 experts, against a loop",
            f">= {target}x" if target else "",
            COMMAND,
            functools.partial(_moe, num_tokens, target),
        )


def _values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def _race(
    ours: Callable[[], object], theirs: Callable[[], object], target: float | None, per: int
) -> Measured:
    with torch.inference_mode():
        found = machine.race({"ours": ours, "theirs": theirs}, CPU, rounds=15, cold=False)
    ratio = found["theirs"] / found["ours"]
    us = {name: s / per * 1e6 for name, s in found.items()}
    text = f"{ratio:.2f}x ({us['ours']:.0f} against {us['theirs']:.0f} us)"
    return Measured(text, None if target is None else ratio >= target)


def _layers(call: Callable[[Any], Tensor], weights: list[Any]) -> Callable[[], None]:
    """A pass over the weights of all layers, as a decode step makes it: none is in the cache."""

    def run() -> None:
        for weight in weights:
            call(weight)

    return run


def _weights() -> list[Tensor]:
    return [_values(2 * MODEL.intermediate_size, MODEL.hidden_size) for _ in range(NUM_LAYERS)]


def _quant(format: Any, num_rows: int, target: float | None) -> Measured:
    plain, x = _weights(), _values(num_rows, MODEL.hidden_size)
    few = [ops.quantize_weight(weight, format=format) for weight in plain]
    ours = _layers(lambda weight: ops.quant_linear(x, weight), few)
    return _race(ours, _layers(lambda weight: ops.linear(x, weight), plain), target, NUM_LAYERS)


def _rounded(num_rows: int, target: float) -> Measured:
    plain, x = _weights(), _values(num_rows, MODEL.hidden_size)
    few = [ops.quantize_weight(weight, format="int8") for weight in plain]
    ours = _layers(lambda weight: ops.quant_linear(x, weight, quantize_input=True), few)
    return _race(ours, _layers(lambda weight: F.linear(x, weight), plain), target, NUM_LAYERS)


def _moe(num_tokens: int, target: float | None) -> Measured:
    x, logits = _values(num_tokens, HIDDEN), _values(num_tokens, EXPERTS)
    gate_up = _values(EXPERTS, 2 * INNER, HIDDEN) / HIDDEN**0.5
    down = _values(EXPERTS, HIDDEN, INNER) / INNER**0.5

    def loop() -> Tensor:
        weights, chosen = logits.float().softmax(-1).topk(TOP_K, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            tokens, rank = torch.where(chosen == expert)
            gate, up = F.linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, down[expert]) * weights[tokens, rank, None]
            out = out.index_add(0, tokens, y.to(x.dtype))
        return out

    return _race(lambda: ops.moe(x, gate_up, down, ops.route(logits, TOP_K)), loop, target, 1)
