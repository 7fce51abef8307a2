"""Forward and backward of rotary embedding and gated activations, beside the formulas in torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.cases_ops import normal
from benches.shapes import LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops
from tests.numerics import assert_close

MODELS = [TINY, LLAMA_200M, LLAMA_8B]
Result = tuple[Tensor, ...]


def num_rows(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 128


def trained(call: Callable[[], Result], inputs: Result, upstream: Result) -> Callable[[], Result]:
    return lambda: torch.autograd.grad(call(), inputs, upstream)


def peers_of(formula: Callable[[], Result], inputs: Result, upstream: Result, on: torch.device):
    found = {"eager": trained(formula, inputs, upstream)}
    if on.type == "cuda":
        found["compile"] = trained(torch.compile(formula, dynamic=False), inputs, upstream)
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def bench_gated(timed, device: torch.device, kind: str, model: ModelShape) -> None:
    rows, hidden = num_rows(device), model.intermediate_size
    x = normal(rows, 2 * hidden, device=device, grad=True)
    dy = (normal(rows, hidden, device=device),)

    def call(impl=None) -> Result:
        if kind == "silu":
            return (ops.silu_and_mul(x, impl=impl),)
        return (ops.gelu_and_mul(x, approximate="tanh", impl=impl),)

    def formula() -> Result:
        gate, up = x.chunk(2, dim=-1)
        act = F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh")
        return (act * up,)

    run = trained(call, (x,), dy)
    assert_close(run()[0], trained(lambda: call("reference"), (x,), dy)()[0])
    forth, back = ops.gated_work(rows, hidden, 2), ops.gated_backward_work(rows, hidden, 2)
    work = type(forth)(forth.flops + back.flops, forth.bytes + back.bytes)
    peers = peers_of(formula, (x,), dy, device)
    timed(run, work=work, peers=peers, kind=kind, model=model.name, num_rows=rows)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def bench_rope(timed, device: torch.device, model: ModelShape) -> None:
    rows = num_rows(device)
    shapes = [(rows, count, model.head_dim) for count in (model.num_heads, model.num_kv_heads)]
    inputs = tuple(normal(*shape, device=device, grad=True) for shape in shapes)
    upstream = tuple(normal(*shape, device=device) for shape in shapes)
    table = ops.rope_table(ops.rope_frequencies(model.head_dim), rows, device=device)
    positions = torch.arange(rows, device=device)
    cos, sin = (half.repeat(1, 2)[:, None].bfloat16() for half in table.chunk(2, dim=-1))

    def call(impl=None) -> Result:
        return ops.apply_rope(inputs[0], inputs[1], positions, table, impl=impl)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def formula() -> Result:
        return turned(inputs[0]), turned(inputs[1])

    run = trained(call, inputs, upstream)
    for a, e in zip(run(), trained(lambda: call("reference"), inputs, upstream)(), strict=True):
        assert_close(a, e)
    once = ops.rope_work(rows, model.num_heads, model.num_kv_heads, model.head_dim, 2)
    work = type(once)(2 * once.flops, 2 * once.bytes)
    peers = peers_of(formula, inputs, upstream, device)
    timed(run, work=work, peers=peers, model=model.name, num_rows=rows)
