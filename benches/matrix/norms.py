"""Rows N1 to N4: norms, gated activations and rotary embedding, forward and backward."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benches.cases_ops import GatedCase, NormCase, RopeCase, normal
from benches.matrix.row import Measurement, Row, Setting, operation, raced
from benches.peers.torch_attention import backward_of, upstream
from blocks import ops
from blocks.ops import reference
from tests.numerics import assert_close

SHAPES = ((16384, 4096), (8192, 8192), (4096, 16384))
ROWS_CHECKED = 64


def norm_case(setting: Setting, num_rows: int, hidden: int, **more: Any) -> NormCase:
    rows, columns = setting.size(num_rows, 6), setting.size(hidden, 48)
    return NormCase.random(rows, columns, device=setting.device, **more)


def normed(setting: Setting, case: NormCase) -> Any:
    """Our norm of a case: the rows, or with a residual rows and sum."""
    options: dict[str, Any] = {"eps": case.eps, "residual": case.residual, "impl": setting.impl}
    if case.bias is not None:
        return ops.layer_norm(case.x, case.weight, case.bias, **options)
    return ops.rms_norm(case.x, case.weight, **options)


def reference_norm(case: NormCase, x: Tensor, residual: Tensor | None) -> Tensor:
    if case.bias is not None:
        found = reference.layer_norm(x, case.weight, case.bias, eps=case.eps, residual=residual)
    else:
        found = reference.rms_norm(
            x, case.weight, eps=case.eps, residual=residual, weight_offset=0.0
        )
    return found[0] if isinstance(found, tuple) else found


def norm_name(case: NormCase) -> str:
    if case.bias is not None:
        return "layer_norm"
    return "rms_norm" if case.residual is None else "add_rms_norm"


def norm_forward(
    setting: Setting, num_rows: int, hidden: int, residual: bool = False
) -> Measurement:
    case = norm_case(setting, num_rows, hidden, residual=residual)

    def check(found: Any) -> None:
        output = found[0] if isinstance(found, tuple) else found
        few = slice(0, ROWS_CHECKED)
        more = None if case.residual is None else case.residual[few]
        assert_close(output[few], reference_norm(case, case.x[few], more))

    work = ops.norm_work(len(case.x), case.x.shape[1], case.x.element_size(), residual=residual)
    call = functools.partial(normed, setting, case)
    return raced(setting, norm_name(case), case, call, check, work, "% copy")


def norm_backward(
    setting: Setting, num_rows: int, hidden: int, residual: bool = False, layer: bool = False
) -> Measurement:
    case = norm_case(setting, num_rows, hidden, residual=residual, layer=layer, grad=True)
    output = normed(setting, case)
    output = output[0] if isinstance(output, tuple) else output
    grad = upstream(output)

    def check(found: tuple[Tensor, ...]) -> None:
        """All gradients, against the reference's in float32."""
        wide = [t.detach().float().requires_grad_() for t in case.inputs]
        parts = dict(zip([f for f in FIELDS if getattr(case, f) is not None], wide, strict=True))
        twin = NormCase(**{**dict.fromkeys(FIELDS), **parts})
        expected = torch.autograd.grad(
            reference_norm(twin, twin.x, twin.residual), wide, grad.float()
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, slack=2.0)  # a sum over all rows, in another order

    work = ops.norm_backward_work(
        len(case.x), case.x.shape[1], case.x.element_size(), residual=residual
    )
    call = backward_of(output, case.inputs)
    return raced(setting, f"{norm_name(case)}_backward", case, call, check, work, "% copy")


FIELDS = ("x", "weight", "residual", "bias")
"""Fields of a ``NormCase`` that are tensors, in the order of its inputs."""


def gated(setting: Setting, backward: bool) -> Measurement:
    rows, hidden = setting.size(8192, 5), setting.size(14336, 40)
    x = normal(rows, 2 * hidden, device=setting.device, grad=backward)
    case = GatedCase(x)
    expected = reference.silu_and_mul(x.detach()[:ROWS_CHECKED])

    def check(found: Any) -> None:
        assert_close(found[:ROWS_CHECKED], expected)

    call = functools.partial(ops.silu_and_mul, x, impl=setting.impl)
    if not backward:
        work = ops.gated_work(rows, hidden, x.element_size())
        return raced(setting, "silu_and_mul", case, call, check, work, "% copy")
    work = operation("ops.gated_backward_work")(rows, hidden, x.element_size())
    output = call()
    grad = upstream(output)
    few = x.detach()[:ROWS_CHECKED].float().requires_grad_()
    wanted = torch.autograd.grad(reference.silu_and_mul(few), few, grad[:ROWS_CHECKED].float())[0]

    def check_gradient(found: tuple[Tensor, ...]) -> None:
        assert_close(found[0][:ROWS_CHECKED], wanted)

    run = backward_of(output, (x,))
    return raced(setting, "silu_and_mul_backward", case, run, check_gradient, work, "% copy")


def rope(setting: Setting) -> Measurement:
    tokens, size = setting.size(8192, 6), setting.size(128, 16)
    heads, kv_heads = setting.size(32, 4), setting.size(8, 2)
    query = normal(tokens, heads, size, device=setting.device)
    key = normal(tokens, kv_heads, size, device=setting.device)
    table = ops.rope_table(ops.rope_frequencies(size), tokens).to(setting.device)
    case = RopeCase(query, key, torch.arange(tokens, device=setting.device), table)
    given = (query, key, case.positions, table)
    expected = reference.apply_rope(*given, interleaved=False)[0]

    def check(found: Any) -> None:
        assert_close(found[0] if isinstance(found, tuple) else found, expected)

    work = ops.rope_work(tokens, heads, kv_heads, size, query.element_size())
    call = functools.partial(ops.apply_rope, *given, impl=setting.impl)
    return raced(setting, "rope", case, call, check, work, "% copy")


def rows() -> Iterator[Row]:
    forward = {"compile": 1.0, "eager": 1.3, "flashinfer": 1.0}
    backward = {"compile": 2.0, "eager": 2.0, "liger": 2.5}
    for num_rows, hidden in SHAPES:
        shape = f"{num_rows}x{hidden}"
        sizes = {"num_rows": num_rows, "hidden": hidden}

        def row(
            family: str,
            what: str,
            one: float,
            two: float,
            measure: Any,
            peers: dict[str, float],
            shape: str = shape,
            sizes: dict[str, int] = sizes,
            **options: bool,
        ) -> Row:
            run = functools.partial(measure, **sizes, **options)
            return Row(f"{family}-{shape}", f"{what} bf16, {shape}", "% copy", one, two, run, peers)

        yield row("N1", "RMSNorm", 92, 97, norm_forward, forward)
        yield row("N2", "RMSNorm backward", 82, 90, norm_backward, backward)
        yield row("N2L", "LayerNorm backward", 82, 90, norm_backward, backward, layer=True)
        fused = {"flashinfer": 1.0}
        yield row("N3", "RMSNorm of a sum", 88, 95, norm_forward, fused, residual=True)
        yield row("N3B", "backward of that", 82, 90, norm_backward, {"liger": 2.0}, residual=True)
    others = {"compile": 1.0, "eager": 2.0}
    run = functools.partial(gated, backward=False)
    yield Row("N4-swiglu", "SwiGLU bf16, 8192x14336", "% copy", 92, 97, run, others)
    run = functools.partial(gated, backward=True)
    peers = {**others, "liger": 1.5}
    yield Row("N4-swiglu-b", "SwiGLU backward bf16, 8192x14336", "% copy", 88, 94, run, peers)
    yield Row("N4-rope", "RoPE bf16, 8192 tokens, 32/8 x 128", "% copy", 90, 95, rope, others)
