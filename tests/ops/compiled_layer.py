"""A layer of operations, eager and compiled into one graph; run by ``test_compile.py``."""

import functools
import sys

import torch

from blocks import ops

TABLE = ops.rope_table(ops.rope_frequencies(16), 64)
POSITIONS = torch.arange(4)
SHAPES = ((4, 32), (32,), (64, 32))


def layer(
    x: torch.Tensor,
    weight: torch.Tensor,
    up: torch.Tensor,
    *,
    impl,
    positions=POSITIONS,
    table=TABLE,
) -> torch.Tensor:
    normed, total = ops.rms_norm(x, weight, residual=x, impl=impl)
    heads = ops.silu_and_mul(ops.linear(normed, up), impl=impl).view(-1, 2, 16)
    query, key = ops.apply_rope(heads, heads, positions, table, impl=impl)
    return (query * key).mean() + ops.gelu(ops.layer_norm(total, weight, impl=impl)).mean()


def main(impl) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in SHAPES]
    run = functools.partial(layer, impl=impl)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(*inputs), inputs)
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), run(*inputs), rtol=1e-4, atol=1e-4)


def check_accelerators_get_operators() -> None:
    """Tensors that are on no CPU and have no contents: what is traced is what a chip would run."""
    inputs = [torch.randn(shape, device="meta").requires_grad_() for shape in SHAPES]
    table, positions = TABLE.to("meta"), torch.arange(4, device="meta")
    seen = []

    def record(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if "blocks." in str(node.target))
        return graph.forward

    def run(x: torch.Tensor, weight: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return layer(x, weight, up, impl=None, positions=positions, table=table)

    torch.compile(run, fullgraph=True, backend=record)(*inputs).backward()
    expected = {f"blocks.{name}.default" for name in ("norm", "rope", "activation")}
    assert set(seen) == expected, seen
    assert inputs[0].grad is not None


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(None if name == "default" else name)
    check_accelerators_get_operators()
