"""Norms, rotary embedding and activations with gradients on an accelerator, at training sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blocks import ops
from tests.numerics import assert_close
from tests.test_kernels_contract import same_bits

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
ROWS = 1024
Call = Callable[..., Any]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=CUDA).to(dtype).requires_grad_()


def norm(kind: str, hidden: int) -> tuple[Call, list[Tensor]]:
    x, residual = random(0, ROWS, hidden), random(1, ROWS, hidden)
    weight, bias = random(2, hidden), random(3, hidden)

    def call(impl: Any, x: Tensor, weight: Tensor, *more: Tensor) -> Any:
        if kind == "rms":
            return ops.rms_norm(x, weight, impl=impl)
        if kind == "add rms":
            return ops.rms_norm(x, weight, residual=more[0], impl=impl)
        return ops.layer_norm(x, weight, more[0], impl=impl)

    more = {"rms": [], "add rms": [residual], "layer": [bias]}[kind]
    return call, [x, weight, *more]


def activation(kind: Any, hidden: int) -> tuple[Call, list[Tensor]]:
    def call(impl: Any, x: Tensor) -> Tensor:
        if kind == "silu":
            return ops.silu_and_mul(x, impl=impl)
        return ops.gelu_and_mul(x, approximate=kind, impl=impl)

    return call, [random(0, ROWS, 2 * hidden)]


def rope(kind: str, head_dim: int) -> tuple[Call, list[Tensor]]:
    table = ops.rope_table(ops.rope_frequencies(head_dim), ROWS, device=CUDA)
    positions = torch.arange(ROWS, device=CUDA)

    def call(impl: Any, query: Tensor, key: Tensor) -> Any:
        given = (query, key, positions, table)
        return ops.apply_rope(*given, interleaved=kind == "interleaved", impl=impl)

    return call, [random(0, ROWS, 32, head_dim), random(1, ROWS, 8, head_dim)]


CASES = [
    *((norm, kind, width) for kind in ("rms", "add rms", "layer") for width in (128, 4096, 8192)),
    *((norm, kind, width) for kind in ("add rms", "layer") for width in (4095, 16384, 65536)),
    *((activation, kind, 14336) for kind in ("silu", "none", "tanh")),
    *((rope, kind, 128) for kind in ("halves", "interleaved")),
]
EVERY = pytest.mark.parametrize(
    ("make", "kind", "size"), CASES, ids=[f"{m.__name__}-{k}-{s}" for m, k, s in CASES]
)


def outputs_and_gradients(call: Call, inputs: list[Tensor], impl: Any = None) -> list[Tensor]:
    found = call(impl, *inputs)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    upstream = [random(7 + i, *y.shape, dtype=y.dtype).detach() for i, y in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


@EVERY
def test_gradients_match_the_reference(make, kind: str, size: int) -> None:
    call, inputs = make(kind, size)
    found = outputs_and_gradients(call, inputs)
    wide = [t.detach().float().requires_grad_() for t in inputs]
    names = [f"{kind} {i}" for i in range(len(found))]
    for name, a, e in zip(
        names, found, outputs_and_gradients(call, wide, "reference"), strict=True
    ):
        assert_close(a, e, what=name, slack=2.0)  # the residual sum and the scaled row are rounded


@EVERY
def test_the_same_bits_every_time(make, kind: str, size: int) -> None:
    call, inputs = make(kind, size)
    first = outputs_and_gradients(call, inputs)
    assert same_bits(first, outputs_and_gradients(call, inputs))


@EVERY
def test_nothing_waits_and_all_fits_in_a_graph(make, kind: str, size: int) -> None:
    call, inputs = make(kind, size)
    expected = outputs_and_gradients(call, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs_and_gradients(call, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    upstream = [y.detach() for y in expected[: len(expected) - len(inputs)]]

    def step() -> list[Tensor]:
        found = call(None, *leaves)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits([t.detach() for t in captured], [t.detach() for t in step()])


@pytest.mark.parametrize("kind", ["rms", "add rms", "layer"])
def test_a_compiled_graph_holds_the_operator(kind: str) -> None:
    call, inputs = norm(kind, 4096)

    def run(*given: Tensor) -> Any:
        return call(None, *given)

    compiled = torch.compile(run, fullgraph=True)
    eager = outputs_and_gradients(call, inputs)
    found = outputs_and_gradients(lambda _, *given: compiled(*given), inputs)
    assert same_bits([t.detach() for t in found], [t.detach() for t in eager])
