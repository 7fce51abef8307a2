"""A mixture of experts and a quantised product, eager and compiled; run by ``test_compile.py``."""

import torch

from blocks import ops

TORCH = "torch"  # the operators themselves: what the compiler keeps whole


def layer(x: torch.Tensor, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor):
    routing = ops.route(ops.linear(x, router), 2)
    named = ops.moe(x, gate_up, down, routing, impl=TORCH)
    return (named + ops.moe(x, gate_up, down, routing)).square().mean()


def main() -> None:
    torch.manual_seed(0)
    shapes = ((9, 16), (4, 16), (4, 24, 16), (4, 16, 12))
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(layer(*inputs), inputs)
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), layer(*inputs), rtol=1e-4, atol=1e-5)

    weight = ops.quantize_weight(torch.randn(24, 16), format="int4")

    def product(x: torch.Tensor) -> torch.Tensor:
        return ops.quant_linear(x, weight, impl=TORCH)

    x, upstream = inputs[0], torch.randn(9, 24)
    compiled_product = torch.compile(product, fullgraph=True, backend="aot_eager")
    (expected_grad,) = torch.autograd.grad(product(x), x, upstream)
    (actual_grad,) = torch.autograd.grad(compiled_product(x), x, upstream)
    torch.testing.assert_close(actual_grad, expected_grad)
    with torch.no_grad():
        torch.testing.assert_close(compiled_product(x), product(x))
        rounded = torch.compile(
            lambda x: ops.quant_linear(x, eight, quantize_input=True, impl=TORCH),
            fullgraph=True,
            backend="aot_eager",
        )
        eight = ops.quantize_weight(torch.randn(24, 16))
        expected_rounded = ops.quant_linear(x, eight, quantize_input=True)
        torch.testing.assert_close(rounded(x), expected_rounded)


if __name__ == "__main__":
    main()
