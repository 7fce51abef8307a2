"""Both losses, eager and compiled into one graph; run by ``test_cross_entropy.py``."""

from typing import Any

import torch

from blocks import ops


def losses(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    whole = ops.cross_entropy(hidden @ weight.T, labels, softcap=3.0, z_loss=0.01)
    fused = ops.linear_cross_entropy(hidden, weight, labels, bias=bias, label_smoothing=0.1)
    rows = ops.linear_cross_entropy(hidden, weight, labels, reduction="none")
    return whole + fused + (rows * torch.arange(len(rows))).sum()


def main() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in ((6, 16), (40, 16), (40,))]
    labels = torch.tensor([3, -100, 39, 0, 7, -100])
    given: tuple[Any, ...] = (*inputs, labels)
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(losses(*given), inputs)
    actual = torch.autograd.grad(compiled(*given), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(*given),
            losses(*given),
        )


if __name__ == "__main__":
    main()
