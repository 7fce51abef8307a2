"""Differentiable attention, eager and compiled into one graph; run by ``test_compile.py``."""

import functools
import sys

import torch

from blocks.attention import prefill, slice_attention
from blocks.attention._packed import PREFILL

BOUNDS = torch.tensor([0, 5, 12], dtype=torch.int32)


def packed(query, key, value, sinks, *, impl):
    options = {"softcap": 5.0, "window": 9, "sinks": sinks}
    output, lse = prefill(query, key, value, BOUNDS, return_lse=True, impl=impl, **options)
    return output.square().sum() + lse.sum()


def sliced(query, key, value, sinks, *, impl):
    output, lse = slice_attention(query[8:], key, value, 8, sinks=sinks, impl=impl)
    return output.square().sum() + lse.sum()


def inputs() -> list[torch.Tensor]:
    shapes = ((12, 4, 16), (12, 2, 16), (12, 2, 16), (4,))
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def check_compiled(function, impl) -> None:
    run, given = functools.partial(function, impl=impl), inputs()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(*given), given)
    actual = torch.autograd.grad(compiled(*given), given)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), run(*given), rtol=1e-5, atol=1e-5)


def check_operator(impl) -> None:
    """What PyTorch asks of an operator: schema, shapes without data, gradients under tracing."""
    query, key, value, sinks = inputs()
    slopes = torch.linspace(0, 1, 4).requires_grad_()
    for per_head in ((None, None), (sinks, slopes)):
        how = (0.3, None, None, True, False, impl)
        arguments = (query, key, value, BOUNDS, BOUNDS, *per_head, *how)
        torch.library.opcheck(PREFILL.operator, arguments)


if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        torch.compiler.reset()
        impl = None if name == "default" else name
        check_compiled(packed, impl)
        check_compiled(sliced, impl)
        check_operator(impl)
