"""A layer of operations, eager and compiled into one graph; run by ``test_compile.py``."""

import functools
import sys

import torch

from blocks import ops

TABLE = ops.rope_table(ops.rope_frequencies(16), 64)


def layer(x: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, *, impl) -> torch.Tensor:
    normed, total = ops.rms_norm(x, weight, residual=x, impl=impl)
    heads = ops.silu_and_mul(ops.linear(normed, up), impl=impl).view(-1, 2, 16)
    query, key = ops.apply_rope(heads, heads, torch.arange(4), TABLE, impl=impl)
    return (query * key).mean() + ops.gelu(ops.layer_norm(total, weight, impl=impl)).mean()


def main(impl) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in ((4, 32), (32,), (64, 32))]
    run = functools.partial(layer, impl=impl)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(*inputs), inputs)
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), run(*inputs), rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(None if name == "default" else name)
