"""Figures of ``blocks.ops``: its CPU paths against torch's own, call by call in turn."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benches import machine
from benches.figures import _kernels, _ops_gradients, _ops_matrix, _ops_training
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M as MODEL
from blocks import ops

CPU = torch.device("cpu")
COMMAND = "make figures AREA=ops"
NUM_LAYERS = 16


def rows() -> Iterator[Row]:
    """Matrix products, the small fused operations, their gradients, the sampler."""
    for num_rows, target in ((1, 1.5), (8, 1.5), (32, 1.0)):
        yield Row(
            f"`linear`, bf16, {num_rows} row(s) against torch's, gate and up of 200M Llama",
            f">= {target}x",
            COMMAND,
            functools.partial(_linear, num_rows, target),
        )
    for num_rows in (1, 32):
        for name, measure, target in (
            ("`rms_norm` with residual", _norm, 1.5),
            ("`apply_rope` in place", _rope, 1.5),
            ("`silu_and_mul`", _swiglu, None),
        ):
            yield Row(
                f"{name}, bf16, {num_rows} row(s) against eager torch",
                f">= {target}x" if target else "",
                COMMAND,
                functools.partial(measure, num_rows, target),
            )
    yield from _ops_matrix.rows()
    yield from _ops_gradients.rows()
    yield from _ops_training.rows()
    for num_rows in (1, 32):
        yield Row(
            f"`sample`, top-k 50 and top-p 0.9, {num_rows} row(s) of 32,000 against torch.sort",
            ">= 3x",
            COMMAND,
            functools.partial(_sample, num_rows),
        )
        yield Row(
            f"`sample`, greedy, {num_rows} row(s) of 32,000 against torch.argmax",
            ">= 1x",
            COMMAND,
            functools.partial(_greedy, num_rows),
        )
    yield from _kernels.rows("ops", ("N", "L", "S", "M", "G", "O"))


def _values(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _linear(num_rows: int, target: float) -> Measured:
    """A pass over the weights of all layers, as a decode step makes it: none is in the cache."""
    inputs, outputs = MODEL.hidden_size, 2 * MODEL.intermediate_size
    weights = [_values(outputs, inputs) for _ in range(NUM_LAYERS)]
    x = _values(num_rows, inputs)
    work = ops.linear_work(num_rows, inputs, outputs, 2)

    def all_layers(call: Callable[[Tensor, Tensor], Tensor]) -> None:
        for weight in weights:
            call(x, weight)

    with torch.inference_mode():
        found = machine.race(
            {"ours": lambda: all_layers(ops.linear), "torch": lambda: all_layers(F.linear)},
            CPU,
            rounds=15,
            cold=False,
        )
    read = {name: NUM_LAYERS * work.bytes / s / 1e9 for name, s in found.items()}
    peak = machine.peak_bandwidth(CPU) / 1e9
    ratio = found["torch"] / found["ours"]
    text = f"{ratio:.2f}x ({read['ours']:.1f} against {read['torch']:.1f} GB/s, peak {peak:.0f})"
    return Measured(text, ratio >= target)


def _repeated(call: Callable[[], object], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def _compare(
    ours: Callable[[], object],
    torchs: Callable[[], object],
    target: float | None,
    count: int = 200,
) -> Measured:
    calls: dict[str, machine.Call] = {
        "ours": _repeated(ours, count),
        "torch": _repeated(torchs, count),
    }
    with torch.inference_mode():
        found = machine.race(calls, CPU, rounds=15, cold=False)
    ratio = found["torch"] / found["ours"]
    us = {name: s / count * 1e6 for name, s in found.items()}
    text = f"{ratio:.2f}x ({us['ours']:.1f} against {us['torch']:.1f} us)"
    return Measured(text, None if target is None else ratio >= target)


def _norm(num_rows: int, target: float | None) -> Measured:
    x, residual = _values(num_rows, MODEL.hidden_size), _values(num_rows, MODEL.hidden_size)
    weight = _values(MODEL.hidden_size)

    def eager() -> Tensor:
        total = x + residual
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * wide.to(total.dtype)

    return _compare(lambda: ops.rms_norm(x, weight, residual=residual), eager, target)


def _rope(num_rows: int, target: float | None) -> Measured:
    query = _values(num_rows, MODEL.num_heads, MODEL.head_dim)
    key = _values(num_rows, MODEL.num_kv_heads, MODEL.head_dim)
    table = ops.rope_table(ops.rope_frequencies(MODEL.head_dim), 4096)
    positions = torch.arange(num_rows)
    cos, sin = (half.repeat(1, 2).bfloat16() for half in table.chunk(2, dim=-1))

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def eager() -> tuple[Tensor, Tensor]:
        c, s = cos[positions, None], sin[positions, None]
        return turned(query, c, s), turned(key, c, s)

    def ours() -> object:
        return ops.apply_rope(query, key, positions, table, inplace=True)

    return _compare(ours, eager, target)


def _swiglu(num_rows: int, target: float | None) -> Measured:
    gate_up = _values(num_rows, 2 * MODEL.intermediate_size)

    def eager() -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return _compare(lambda: ops.silu_and_mul(gate_up), eager, target)


def _sample(num_rows: int) -> Measured:
    logits = 3 * _values(num_rows, MODEL.vocab_size, dtype=torch.float32)
    seeds, positions = torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64)

    def by_sorting() -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True)
        ordered[:, 50:] = -torch.inf
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= 0.9] = 0
        return order.gather(1, probabilities.multinomial(1))

    def ours() -> Tensor:
        return ops.sample(logits, top_k=50, top_p=0.9, seeds=seeds, positions=positions)

    return _compare(ours, by_sorting, 3, count=10)


def _greedy(num_rows: int) -> Measured:
    logits = 3 * _values(num_rows, MODEL.vocab_size, dtype=torch.float32)
    return _compare(
        lambda: ops.sample(logits, temperature=0.0), lambda: logits.argmax(-1), 1, count=20
    )
