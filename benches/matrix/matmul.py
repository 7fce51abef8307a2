"""Rows M1 and G1: grouped products of experts, and products with quantised weights."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benches.cases_ops import MoeCase, normal
from benches.matrix.row import Measurement, Row, Setting, raced
from blocks import ops
from blocks._work import Work
from tests.numerics import assert_close


def experts(setting: Setting, tokens: int, backward: bool, unit: str) -> Measurement:
    """A mixture's two grouped products, routing included; E128, 8 a token, 2048 x 768."""
    count, top_k = setting.size(128, 4), setting.size(8, 2)
    tokens, width, inner = setting.size(tokens, 6), setting.size(2048, 32), setting.size(768, 16)
    device = setting.device
    x = normal(tokens, width, device=device, grad=backward)
    shapes = (count, 2 * inner, width), (count, width, inner)
    gate_up, down = (
        normal(*s, device=device).mul(s[2] ** -0.5).requires_grad_(backward) for s in shapes
    )
    routing = ops.route(normal(tokens, count, device=device), top_k, impl=setting.impl)

    def forward() -> Tensor:
        return ops.moe(x, gate_up, down, routing, impl=setting.impl)

    def both() -> tuple[Tensor, ...]:
        output = forward()
        return (output, *torch.autograd.grad(output, (x, gate_up, down), grad))

    def check(found: Tensor | tuple[Tensor, ...]) -> None:
        output = found[0] if isinstance(found, tuple) else found
        for token in (0, tokens - 1):
            expected = 0
            for place, expert in enumerate(routing.experts[token].tolist()):
                halves = gate_up[expert].float() @ x[token].float()
                gate, up = halves.chunk(2)
                mixed = down[expert].float() @ (torch.nn.functional.silu(gate) * up)
                expected = expected + routing.weights[token, place] * mixed
            assert_close(output[token], torch.as_tensor(expected), slack=2.0)

    used = min(count, tokens * top_k)
    work = ops.moe_work(tokens, top_k, width, inner, used, x.element_size())
    grad = normal(tokens, width, device=device)
    if backward:
        work = Work(3 * work.flops, 3 * work.bytes)
    call = both if backward else forward
    case = types.SimpleNamespace(x=x)
    return raced(setting, "moe", case, call, check, work, unit)


def grouped(setting: Setting, groups: int, rows: int, inputs: int, outputs: int) -> Measurement:
    groups, rows = setting.size(groups, 3), setting.size(rows, 20)
    inputs, outputs = setting.size(inputs, 48), setting.size(outputs, 32)
    device = setting.device
    x = normal(rows, inputs, device=device)
    weights = normal(groups, outputs, inputs, device=device) * inputs**-0.5
    offsets = torch.linspace(0, rows, groups + 1, device=device).int()
    case = MoeCase(x, weights, offsets)

    def check(output: Tensor) -> None:
        end = min(64, int(offsets[1]))
        assert_close(output[:end], x[:end].float() @ weights[0].float().t(), slack=2.0)

    work = ops.grouped_linear_work(rows, inputs, outputs, groups, x.element_size())
    call = functools.partial(ops.grouped_linear, x, weights, offsets, impl=setting.impl)
    name = "grouped_linear" if groups > 1 else "gemm"
    peer_case = case if groups > 1 else types.SimpleNamespace(x=x, weight=weights[0])
    return raced(setting, name, peer_case, call, check, work, "TFLOP/s")


def quantised(
    setting: Setting, rows: int, kind: Any, unit: str, group: tuple[int, int] | int | None
) -> Measurement:
    rows, size = setting.size(rows, 3), setting.size(8192, 128)
    x = normal(rows, size, device=setting.device)
    weight = normal(size, size, device=setting.device) * size**-0.5
    options: dict[str, Any] = {} if group is None else {"group_size": group}
    stored = ops.quantize_weight(weight, format=kind, **options)
    rounded = kind == "fp8" and not setting.tiny  # both sides in fp8: the product is fp8 too
    call = functools.partial(ops.quant_linear, x, stored, quantize_input=rounded, impl=setting.impl)

    def check(output: Tensor) -> None:
        expected = x[:64].float() @ stored.dequantize().float().t()
        worst = (output[:64] - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert worst < (0.05 if kind == "fp8" else 0.02), f"relative error {worst:.3f}"

    work = ops.quant_linear_work(rows, stored, x.element_size())
    case = types.SimpleNamespace(x=x, weight=weight)
    name = "gemm_fp8" if kind == "fp8" else "gemm"
    return raced(setting, name, case, call, check, work, unit)


def rows() -> Iterator[Row]:
    what = "MoE bf16, 128 experts, 8 a token, 2048 x 768"
    for name, tokens, backward, unit, one, two in (
        ("8192", 8192, False, "TFLOP/s", 450, 580),
        ("8192-b", 8192, True, "TFLOP/s", 350, 450),
        ("64", 64, False, "% copy", 85, 95),
    ):
        passes = "both passes" if backward else "forward"
        run = functools.partial(experts, tokens=tokens, backward=backward, unit=unit)
        yield Row(f"M1-{name}", f"{what}, {tokens} tokens, {passes}", unit, one, two, run)
    run = functools.partial(grouped, groups=128, rows=65536, inputs=2048, outputs=1536)
    yield Row(
        "M1-grouped",
        "grouped product bf16, 128 groups of 512 rows, 2048 to 1536",
        "TFLOP/s",
        490,
        620,
        run,
        {"torch _grouped_mm": 0.9},
    )
    for size in (4096, 8192):
        run = functools.partial(grouped, groups=1, rows=size, inputs=size, outputs=size)
        yield Row(
            f"G1-bf16-{size}",
            f"product bf16, {size} cubed",
            "TFLOP/s",
            600,
            680,
            run,
            {"cublas": 0.9},
        )
    fp8 = {"torch _scaled_mm": 0.85}
    run = functools.partial(quantised, rows=8192, kind="fp8", unit="TFLOP/s", group=None)
    yield Row("G1-fp8", "product fp8 by fp8, 8192 cubed", "TFLOP/s", 900, 1100, run, fp8)
    run = functools.partial(quantised, rows=8192, kind="fp8", unit="TFLOP/s", group=(128, 128))
    yield Row("G1-fp8-128", "the same, blocks of 128", "TFLOP/s", 700, 900, run, {})
    for count in (1, 16):
        run = functools.partial(quantised, rows=count, kind="int4", unit="% copy", group=128)
        yield Row(
            f"G1-w4-{count}",
            f"int4 weights 8192x8192, {count} row(s) of bf16",
            "% copy",
            65,
            80,
            run,
            {"cublas": 2.0},
        )
