"""``StepCosts``: seconds and bytes of every slice at every stage, as tables. Needs no torch."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from blocks._checks import check
from blocks.pipeline.action import Kind
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.memory import Bytes, MemorySizes
from blocks.pipeline.plan.mode import Mode

Row = tuple[float, ...]
Table = tuple[Row, ...]
"""A number for every stage and slice."""


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What one step is made of, whatever its order; all sequences are cut alike.

    num_ranks, num_chunks: stage ``s`` of ``num_ranks * num_chunks`` lives on rank
        ``s % num_ranks``.
    bounds: token slice ``i`` is ``bounds[i]`` to ``bounds[i + 1]``.
    splits_weights: whether weight gradients are actions of their own. Where they are not,
        ``backward`` includes them and ``weight`` is zero.
    forward, recompute, backward, weight: seconds; ``recompute`` is zero where activations are kept.
    send_forward, send_backward: seconds between the end of a pass at a stage and its result at the
        next, or at the one before; zero inside a rank.
    kept: bytes from a forward to its backward.
    remade: bytes from a recomputation to its backward.
    accumulated: bytes of key and value gradients, from the first backward of the sequence to the
        slice's own.
    put_aside: bytes from an input gradient to its weight gradient.
    """

    num_ranks: int
    num_chunks: int
    bounds: tuple[int, ...]
    splits_weights: bool
    forward: Table
    recompute: Table
    backward: Table
    weight: Table
    send_forward: Table
    send_backward: Table
    kept: Table
    remade: Table
    accumulated: Table
    put_aside: Table

    @property
    def num_stages(self) -> int:
        return self.num_ranks * self.num_chunks

    @property
    def num_slices(self) -> int:
        return len(self.bounds) - 1

    def first_alike(self) -> list[int]:
        """For every rank the first with the same tables, apart from transfers."""
        names = ("forward", "recompute", "backward", "weight")
        names += ("kept", "remade", "accumulated", "put_aside")
        seen: dict[tuple[Row, ...], int] = {}
        found = []
        for rank in range(self.num_ranks):
            stages = range(rank, self.num_stages, self.num_ranks)
            key = tuple(getattr(self, name)[stage] for name in names for stage in stages)
            found.append(seen.setdefault(key, rank))
        return found

    def busy_s(self, rank: int) -> float:
        """Seconds ``rank`` computes for one sequence."""
        tables = (self.forward, self.recompute, self.backward, self.weight)
        stages = range(rank, self.num_stages, self.num_ranks)
        return sum(sum(table[stage]) for table in tables for stage in stages)


def step_costs(
    surfaces: Sequence[CostSurface],
    sizes: MemorySizes,
    bounds: tuple[int, ...],
    mode: Mode,
    *,
    whole_prefix: bool = False,
) -> StepCosts:
    """The tables of one cut and mode.

    Args:
        surfaces: of every rank, all its layers together.
        sizes: of every rank, all its layers together; their stage is the rank.
        bounds: of the slices.
        whole_prefix: keys, values and their gradients are held for whole sequences.
    """
    ranks, chunks = len(surfaces), mode.num_chunks
    stages = ranks * chunks
    scaled = {id(surface): surface.scaled(1 / chunks) for surface in surfaces}
    parts = surfaces if chunks == 1 else [scaled[id(surface)] for surface in surfaces]
    slices = [(stop - start, start) for start, stop in itertools.pairwise(bounds)]
    zero: Row = (0.0,) * len(slices)

    alike: dict[int, int] = {}  # ranks that share one surface are priced once
    first = [alike.setdefault(id(part), rank) for rank, part in enumerate(parts)]

    def rows(price: Callable[[CostSurface, int, int], float]) -> Table:
        own = {r: tuple(float(price(parts[r], n, c)) for n, c in slices) for r in set(first)}
        return tuple(own[rank] for rank in first) * chunks

    def seconds(kind: Kind) -> Table:
        return rows(lambda part, n, c: part.seconds(kind, n, c))

    def sent(step: int) -> Table:
        away = rows(lambda part, n, c: part.transfer_seconds(n))
        inside = [0 <= stage + step < stages and ranks > 1 for stage in range(stages)]
        return _choose(inside, away, (zero,) * stages)

    def size(of: Bytes) -> Table:
        rows = [tuple(float(of(rank, n, c)) / chunks for n, c in slices) for rank in range(ranks)]
        for rank, row in enumerate(rows):
            fits = all(amount >= 0 for amount in row)  # also where one is no number
            check(fits, f"sizes of rank {rank}", "bytes of at least 0 for every slice", row)
        return tuple(rows) * chunks

    again = tuple(stage % ranks < mode.num_recomputing for stage in range(stages))
    activations, inputs, keys = size(sizes.activations), size(sizes.inputs), size(sizes.keys_values)
    accumulators = size(sizes.accumulators)
    if whole_prefix:  # as if the first slice, first forward and last backward, held all of them
        keys = tuple(
            (sum(map(sum, (row, more))), *zero[1:])
            for row, more in zip(keys, accumulators, strict=True)
        )
    kept = _choose(again, inputs, activations)
    split = mode.splits_weights
    return StepCosts(
        num_ranks=ranks,
        num_chunks=chunks,
        bounds=bounds,
        splits_weights=split,
        forward=seconds(Kind.FORWARD),
        recompute=_choose(again, seconds(Kind.RECOMPUTE), (zero,) * stages),
        backward=seconds(Kind.BACKWARD if split else Kind.FULL_BACKWARD),
        weight=seconds(Kind.WEIGHT) if split else (zero,) * stages,
        send_forward=sent(1),
        send_backward=sent(-1),
        kept=tuple(_added(a, b) for a, b in zip(kept, keys, strict=True)),
        remade=_choose(again, activations, (zero,) * stages),
        accumulated=(zero,) * stages if whole_prefix else accumulators,
        put_aside=size(sizes.weight_inputs) if split else (zero,) * stages,
    )


def _choose(ask: Sequence[bool], yes: Table, no: Table) -> Table:
    return tuple(a if asked else b for asked, a, b in zip(ask, yes, no, strict=True))


def _added(row: Row, other: Row) -> Row:
    return tuple(a + b for a, b in zip(row, other, strict=True))


def sizes_of_stages(sizes: MemorySizes, num_ranks: int, num_chunks: int) -> MemorySizes:
    """Sizes by stage, from sizes by rank, of ``num_chunks`` equal stages on every rank."""

    def part(of: Bytes) -> Bytes:
        return lambda stage, num_tokens, start: (
            of(stage % num_ranks, num_tokens, start) / num_chunks
        )

    names = [field.name for field in dataclasses.fields(sizes)]
    return MemorySizes(**{name: part(getattr(sizes, name)) for name in names})
