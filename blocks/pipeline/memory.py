"""``peak_bytes``: the most a rank holds while it runs its program. Needs no torch."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

from blocks.pipeline._bounds import check_bounds
from blocks.pipeline.lifetimes import Held, lifetimes
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.timeline import Number

Bytes = Callable[[int, int, int], Number]
"""Bytes of (stage, tokens of the slice, tokens before it)."""


def _nothing(stage: int, num_tokens: int, start: int) -> int:
    return 0


@dataclasses.dataclass(frozen=True)
class MemorySizes:
    """Bytes that a slice of ``num_tokens`` after ``start`` tokens needs at a stage, all its layers
    together, each a function of (stage, num_tokens, start). See ``Held`` for when they are held.

    Sizes are exact where they are integers or fractions, in any unit.
    """

    activations: Bytes = _nothing
    keys_values: Bytes = _nothing
    accumulators: Bytes = _nothing
    weight_inputs: Bytes = _nothing
    inputs: Bytes = _nothing
    weight_gradients: Bytes = _nothing


def live_bytes(
    schedule: Schedule,
    sizes: MemorySizes,
    bounds: Sequence[Sequence[int]] | None = None,
    *,
    recompute: Collection[int] = (),
    whole_prefix: bool = False,
) -> tuple[tuple[Number, ...], ...]:
    """For every rank the bytes held during each action of its program.

    Args:
        bounds: for every sequence the token at which each slice begins, and the end; slice i is
            token i when None.
        recompute, whole_prefix: see ``lifetimes``.

    Raises:
        ValueError: bounds that do not fit the schedule; an incomplete schedule.
    """
    if bounds is None:
        bounds = [range(count + 1) for count in schedule.num_slices]
    check_bounds(bounds, schedule.num_slices)
    size = {held: getattr(sizes, held.value) for held in Held}
    wanted = {held for held, function in size.items() if function is not _nothing}
    found = []
    spans = lifetimes(schedule, recompute=recompute, whole_prefix=whole_prefix)
    for program, held_here in zip(schedule.programs, spans, strict=True):
        change: list[Number] = [0] * (len(program) + 1)
        for held in held_here:
            if held.what in wanted:
                start, stop = bounds[held.sequence][held.slice : held.slice + 2]
                amount = size[held.what](held.stage, stop - start, start)
                change[held.begin] += amount
                change[held.end + 1] -= amount
        found.append(tuple(accumulate(change))[:-1])
    return tuple(found)


def peak_bytes(
    schedule: Schedule,
    sizes: MemorySizes,
    bounds: Sequence[Sequence[int]] | None = None,
    *,
    recompute: Collection[int] = (),
    whole_prefix: bool = False,
) -> tuple[Number, ...]:
    """For every rank the most bytes held during any action of its program; see ``live_bytes``.

    Weights, their summed gradients and the optimizer are not counted, nor are messages under way.

    >>> from blocks.pipeline.schedules import seq1f1b
    >>> peak_bytes(seq1f1b(4, (8,) * 3), MemorySizes(activations=lambda stage, n, start: n))
    (11, 10, 9, 8)
    """
    live = live_bytes(schedule, sizes, bounds, recompute=recompute, whole_prefix=whole_prefix)
    return tuple(max(curve, default=0) for curve in live)
