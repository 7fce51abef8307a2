"""Rows of ``benches.figures.ops`` that train: forward and backward against torch, in turn."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benches import machine
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M as MODEL
from blocks import ops

COMMAND = "make figures AREA=ops"
NUM_ROWS = 2048
Result = Tensor | tuple[Tensor, ...]


def rows() -> Iterator[Row]:
    """The small operations at 2,048 rows of a 200M Llama, bf16."""
    for name, measure, target in (
        ("`rms_norm` with residual", _norm, 2.0),
        ("`layer_norm` (torch's fused one)", _layer, 1.0),
        ("`apply_rope`", _rope, 3.0),
        ("`silu_and_mul`", _swiglu, 1.2),
    ):
        claim = f"{name}, forward and backward, bf16, {NUM_ROWS:,} rows against eager torch"
        yield Row(claim, f">= {target}x", COMMAND, functools.partial(measure, target))


def _values(*shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.bfloat16().requires_grad_()


def _compare(
    ours: Callable[[], Result],
    torchs: Callable[[], Result],
    inputs: tuple[Tensor, ...],
    target: float,
) -> Measured:
    """Time of outputs and gradients together; both sides make the same ones."""

    def trained(call: Callable[[], Result]) -> Callable[[], object]:
        found = call()
        outputs = (found,) if isinstance(found, Tensor) else found
        upstream = tuple(torch.randn_like(y) for y in outputs)
        return lambda: torch.autograd.grad(call(), inputs, upstream)

    calls = {"ours": trained(ours), "torch": trained(torchs)}
    found = machine.race(calls, torch.device("cpu"), rounds=25, cold=False)
    ratio = found["torch"] / found["ours"]
    ms = {name: s * 1e3 for name, s in found.items()}
    return Measured(
        f"{ratio:.2f}x ({ms['ours']:.2f} against {ms['torch']:.2f} ms)", ratio >= target
    )


def _norm(target: float) -> Measured:
    shape = (NUM_ROWS, MODEL.hidden_size)
    x, residual, weight = _values(*shape), _values(*shape), _values(MODEL.hidden_size)

    def eager() -> Result:
        total = x + residual
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * wide.to(total.dtype), total

    def ours() -> Result:
        return tuple(ops.rms_norm(x, weight, residual=residual))

    return _compare(ours, eager, (x, residual, weight), target)


def _layer(target: float) -> Measured:
    x, weight, bias = (
        _values(NUM_ROWS, MODEL.hidden_size),
        _values(MODEL.hidden_size),
        _values(MODEL.hidden_size),
    )
    return _compare(
        lambda: ops.layer_norm(x, weight, bias),
        lambda: F.layer_norm(x, x.shape[-1:], weight, bias),
        (x, weight, bias),
        target,
    )


def _rope(target: float) -> Measured:
    query = _values(NUM_ROWS, MODEL.num_heads, MODEL.head_dim)
    key = _values(NUM_ROWS, MODEL.num_kv_heads, MODEL.head_dim)
    table = ops.rope_table(ops.rope_frequencies(MODEL.head_dim), 4096)
    positions = torch.arange(NUM_ROWS)
    cos, sin = (half.repeat(1, 2).bfloat16() for half in table.chunk(2, dim=-1))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        c, s = cos[positions, None], sin[positions, None]
        return x * c + torch.cat((-second, first), dim=-1) * s

    return _compare(
        lambda: ops.apply_rope(query, key, positions, table),
        lambda: (turned(query), turned(key)),
        (query, key),
        target,
    )


def _swiglu(target: float) -> Measured:
    gate_up = _values(NUM_ROWS, 2 * MODEL.intermediate_size)

    def eager() -> Result:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return _compare(lambda: ops.silu_and_mul(gate_up), eager, (gate_up,), target)
