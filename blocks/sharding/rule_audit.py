"""``audit_rule``: whether what the ranks compute under a rule makes the whole operation.

Ranks are simulated in one process: the inputs are cut as a strategy asks, every rank works on its
parts, and the outputs are put together as the strategy says.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks._checks import check
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Partial, Placement, Run, Shard, run_of
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.strategy import Strategy, strategies


class RankShare(NamedTuple):
    """What one rank does of an operation.

    runs: by the name of a factor, which part of it; all of it where nothing cuts it.
    local_shapes: of the outputs.
    strategy, mesh, rank: whence this follows.
    """

    runs: Mapping[str, Run]
    local_shapes: tuple[tuple[int, ...], ...]
    strategy: Strategy
    mesh: Mesh
    rank: int


Operation = Callable[..., Tensor | Sequence[Tensor]]
"""(*inputs) to the output, or to the outputs."""


def audit_rule(
    rule: OpRule,
    inputs: Sequence[Tensor],
    operation: Operation,
    mesh: Mesh,
    *,
    local: Operation | None = None,
    tolerance: float | None = None,
) -> int:
    """Try every strategy of a rule on a mesh against the whole operation.

    Args:
        inputs: whole, of the dims of the rule.
        local: (share, *parts) to the outputs of a rank, for an operation that does on a rank
            something else than on the whole: with its own sizes, or only where indices fall into
            its run. None where it does the same.
        tolerance: of the largest error, relative to the largest magnitude of the output where that
            is above 1; None for 1e-10 where all tensors are float64, else for 2**8 roundings of
            the narrowest. Tensors of whole numbers and truth values must be equal.

    Returns:
        How many strategies were tried, all of them right.

    Raises:
        AssertionError: one that is not, by name.
        ValueError: tensors of other shapes than the rule has.
    """
    work = local or (lambda share, *parts: operation(*parts))
    wholes = _listed(operation(*inputs))
    _check_dims(rule, [inputs, wholes])
    allowed = _tolerance([*inputs, *wholes]) if tolerance is None else tolerance
    tried = strategies(rule, mesh)
    generator = torch.Generator().manual_seed(len(tried))
    for strategy in tried:
        cut = [
            _cut(whole, ShardingSpec(mesh, placements), generator)
            for whole, placements in zip(inputs, strategy.inputs, strict=True)
        ]
        specs = [ShardingSpec(mesh, placements) for placements in strategy.outputs]
        found = []
        for at, rank in enumerate(mesh.ranks):
            shapes = [s.local_shape(w.shape, rank) for s, w in zip(specs, wholes, strict=True)]
            runs = _runs(rule, strategy, mesh, rank)
            share = RankShare(runs, tuple(shapes), strategy, mesh, rank)
            found.append(_listed(work(share, *(parts[at] for parts in cut))))
        for index, (spec, whole) in enumerate(zip(specs, wholes, strict=True)):
            try:
                parts = [outputs[index] for outputs in found]
                parts = _largest(rule, strategy, index, mesh, parts)
                _compare(_joined(parts, spec, whole, allowed), whole, allowed)
            except AssertionError as error:
                names = [rule.factors[c].name if c >= 0 else str(c) for c in strategy.choices]
                message = f"output {index} of {strategy} (axes cut {names}) on {mesh}: {error}"
                raise AssertionError(message) from error
    return len(tried)


def _listed(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _tolerance(tensors: Sequence[Tensor]) -> float:
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float64}
    return max([1e-10, *(2**8 * torch.finfo(dtype).eps for dtype in dtypes)])


def _check_dims(rule: OpRule, tensors: Sequence[Sequence[Tensor]]) -> None:
    """Refuse tensors that the rule is not about."""
    for given, expected in zip(tensors, (rule.inputs, rule.outputs), strict=True):
        check(len(given) == len(expected), "tensors", len(expected), len(given))
        for tensor, dims in zip(given, expected, strict=True):
            check(tensor.ndim == len(dims), "dims", dims, tuple(tensor.shape))
            for size, dim in zip(tensor.shape, dims, strict=True):
                factor = None if dim is None else rule.factors[dim]
                fits = factor is None or size == factor.size
                if factor is not None and (factor.even or factor.kind == "whole"):
                    fits = size % factor.size == 0
                check(fits, "size of a dim", factor, tuple(tensor.shape))


def _runs(rule: OpRule, strategy: Strategy, mesh: Mesh, rank: int) -> dict[str, Run]:
    runs = [Run(0, factor.size) for factor in rule.factors]
    at = mesh.coordinates(rank)
    for choice, num_ranks, coordinate in zip(strategy.choices, mesh.sizes, at, strict=True):
        if choice >= 0:
            start, part = runs[choice].start, run_of(runs[choice].size, num_ranks, coordinate)
            runs[choice] = Run(start + part.start, start + part.stop)
    return {factor.name: run for factor, run in zip(rule.factors, runs, strict=True)}


def _cut(whole: Tensor, spec: ShardingSpec, generator: torch.Generator) -> list[Tensor]:
    """What every rank holds; of a sum, addends drawn at random."""
    held = dict.fromkeys(spec.mesh.ranks, whole)
    for axis in spec.mesh.axes:
        for group in spec.mesh.groups(axis):
            parts = _parts(held[group[0]], spec.placement(axis), len(group), generator)
            held.update(zip(group, parts, strict=True))
    return [held[rank] for rank in spec.mesh.ranks]


def _parts(whole: Tensor, placement: Placement, count: int, generator: Any) -> list[Tensor]:
    if isinstance(placement, Shard):
        runs = [run_of(whole.shape[placement.dim], count, at) for at in range(count)]
        return [whole.narrow(placement.dim, run.start, run.size).contiguous() for run in runs]
    if not isinstance(placement, Partial):
        return [whole] * count
    shape = (count - 1, *whole.shape)
    if whole.is_floating_point():
        largest = whole.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if whole.numel() else 0.0
        others = min(largest, 1e6) * torch.randn(shape, dtype=whole.dtype, generator=generator)
    else:
        others = torch.randint(-9, 9, shape, dtype=whole.dtype, generator=generator)
    return [whole - others.sum(0), *others]


def _largest(
    rule: OpRule, strategy: Strategy, index: int, mesh: Mesh, parts: list[Tensor]
) -> list[Tensor]:
    """The all-reduce inside of an operation whose ranks hold candidates."""
    held = dict(zip(mesh.ranks, parts, strict=True))
    for axis, choice in zip(mesh.axes, strategy.choices, strict=True):
        cut = choice >= 0 and rule.factors[choice].kind == "max"
        if cut and choice not in rule.outputs[index]:
            for group in mesh.groups(axis):
                largest = torch.stack([held[rank] for rank in group]).amax(0)
                held.update(dict.fromkeys(group, largest))
    return [held[rank] for rank in mesh.ranks]


def _joined(parts: Sequence[Tensor], spec: ShardingSpec, whole: Tensor, tolerance: float) -> Tensor:
    """The whole tensor from all its parts, whose shapes and replicas are compared too."""
    held = dict(zip(spec.mesh.ranks, parts, strict=True))
    for rank, part in held.items():
        expected = spec.local_shape(whole.shape, rank)
        assert tuple(part.shape) == expected, (
            f"rank {rank} made {tuple(part.shape)}, not {expected}"
        )
    for axis in reversed(spec.mesh.axes):  # the innermost cut is undone first
        placement = spec.placement(axis)
        for group in spec.mesh.groups(axis):
            found = [held[rank] for rank in group]
            if isinstance(placement, Shard):
                joined = torch.cat(found, placement.dim)
            elif isinstance(placement, Partial):
                joined = torch.stack(found).sum(0)
            else:
                joined = found[0]
                for other in found[1:]:
                    _compare(other, joined, tolerance)
            held.update(dict.fromkeys(group, joined))
    return held[spec.mesh.ranks[0]]


def _compare(found: Tensor, expected: Tensor, tolerance: float) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected), "whole numbers differ"
    elif expected.numel():
        assert (found.isnan() == expected.isnan()).all(), "NaN at other places"
        error = (found - expected).abs().nan_to_num(0.0).max().item()
        bound = tolerance * max(1.0, expected.nan_to_num(0.0).abs().max().item())
        assert error <= bound, f"largest error {error:.3g}, allowed {bound:.3g}"
