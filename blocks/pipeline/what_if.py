"""``what_if``: a measured step on another schedule, other slices or faster parts.

Needs no torch; other slices need numpy.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from blocks._checks import check, check_positive, fail
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.fit_cost import Sample, fit_cost
from blocks.pipeline.measured import Clock, durations_s, transfer_s
from blocks.pipeline.replay import compute_only
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import simulate
from blocks.pipeline.timeline import Number, Timeline
from blocks.pipeline.trace import Trace


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """A measured step as it would have been, simulated.

    timeline: in seconds.
    replayed_s: makespan of the step as it was, simulated in the same way.
    is_measured: whether every action took what the trace measured for it (up to the factors asked
        for), rather than what a surface fitted to the trace says.
    """

    timeline: Timeline
    replayed_s: float
    is_measured: bool

    @property
    def speed_up(self) -> float:
        """How many times as fast as the step as it was, both simulated."""
        return self.replayed_s / float(self.timeline.makespan)


def what_if(
    trace: Trace,
    schedule: Schedule | None = None,
    *,
    bounds: Sequence[Sequence[int]] | None = None,
    faster: Mapping[int, int | float] | None = None,
    transfer: Number | Callable[[Action], Number] | None = None,
    clock: Clock = "wall",
) -> WhatIf:
    """Simulate another step from what a trace measured.

    With the stages and slices of the trace every action takes what was measured for it. A
    backward that was measured whole is split (see ``Durations``). With other slices or another
    number of stages, a cost surface is fitted to each stage of the trace; where stages are more or
    fewer, each takes an equal share of all.

    Args:
        trace: of all ranks.
        schedule: what to do instead; the trace's own when None. It may have other ranks, another
            order, other slices.
        bounds: of the slices, see ``Trace``; the trace's own when None.
        faster: factor by which a stage (of ``schedule``) becomes faster.
        transfer: seconds of a transfer, or a function of the receive; as measured when None.
        clock: which durations of the trace to take.

    Raises:
        ValueError: bounds that do not fit the schedule; other slices than the trace's where that
            has too few, or all of one length, to tell what others cost.
    """
    durations = Durations(trace, clock)
    between = transfer_s(trace) if transfer is None else transfer
    carry = between if callable(between) else lambda _: between
    new = compute_only(trace.schedule if schedule is None else schedule)
    cuts = trace.bounds if bounds is None else tuple(map(tuple, bounds))
    counts = tuple(len(cut) - 1 for cut in cuts)
    hint = "give the bounds of the schedule's slices"
    check(counts == new.num_slices, "bounds", f"slices {new.num_slices}", counts, hint)
    factors = dict(faster or {})
    for stage, factor in factors.items():
        known = 0 <= stage < new.num_stages
        check(known, "faster", f"stages below {new.num_stages}", stage)
        check_positive(f"faster[{stage}]", factor)
    is_measured = cuts == trace.bounds and new.num_stages == trace.schedule.num_stages
    seconds = durations if is_measured else durations.fitted(cuts, new.num_stages)

    def duration(action: Action) -> Number:
        return seconds(action) / factors.get(action.stage, 1)

    as_it_was = transfer_s(trace)
    old = simulate(compute_only(trace.schedule), durations, transfer=lambda _: as_it_was)
    timeline = simulate(new, duration, transfer=carry)
    return WhatIf(timeline, float(old.makespan), is_measured)


class Durations:
    """Seconds of any compute action on the slices of a trace.

    What was measured is returned as it is. A full backward is the sum of its measured halves. Of a
    backward that was only measured whole, the weight gradient is what half of the sequence's first
    slice took, by the token: weight products cost the same for every token, and the first slice
    has the least attention beside them. A recomputation that was not measured takes as long as the
    forward.
    """

    def __init__(self, trace: Trace, clock: Clock = "wall") -> None:
        self._trace = trace
        self._taken = durations_s(trace, clock)

    def __call__(self, action: Action) -> float:
        found = self._taken.get(action)
        if found is not None:
            return found
        if action.kind is Kind.FULL_BACKWARD:
            return self(action.on(Kind.BACKWARD)) + self(action.on(Kind.WEIGHT))
        if action.kind is Kind.RECOMPUTE:
            return self(action.on(Kind.FORWARD))
        whole = self._taken.get(action.on(Kind.FULL_BACKWARD))
        if whole is None or action.kind is Kind.FORWARD:
            raise fail(f"{action}", "its time in the trace", "none")
        weight = self._weight_s(action, whole)
        return weight if action.kind is Kind.WEIGHT else whole - weight

    def _weight_s(self, action: Action, whole: float) -> float:
        first = action.on(Kind.FULL_BACKWARD)._replace(slice=0)
        start, stop = self._trace.tokens(action)
        share = (stop - start) / self._trace.bounds[action.sequence][1]
        return min(self._taken.get(first, whole) * share, whole) / 2

    def fitted(self, bounds: Sequence[Sequence[int]], num_stages: int) -> Callable[[Action], float]:
        """Seconds of compute actions on other slices and stages, from surfaces fitted to these.

        Raises:
            ValueError: other lengths than the trace's, which has all of one length; slices too few
                to fit a surface to.
        """
        schedule = self._trace.schedule
        known, wanted = (
            {b - a for cut in cuts for a, b in itertools.pairwise(cut)}
            for cuts in (self._trace.bounds, bounds)
        )
        told = len(known) > 1 or wanted <= known
        hint = "trace a step with slices of several lengths"
        check(told, "lengths of slices", f"{sorted(known)}, as measured", sorted(wanted), hint)
        surfaces = [fit_cost(self._samples(stage)) for stage in range(schedule.num_stages)]
        same = num_stages == schedule.num_stages
        kept: dict[tuple[Kind, int, int, int], float] = {}

        def seconds(action: Action) -> float:
            cut = bounds[action.sequence]
            start, stop = cut[action.slice], cut[action.slice + 1]
            key = action.kind, action.stage if same else 0, stop - start, start
            if key not in kept:
                chosen = [surfaces[action.stage]] if same else surfaces
                whole = sum(float(surface.seconds(key[0], *key[2:])) for surface in chosen)
                kept[key] = whole if same else whole / num_stages
            return kept[key]

        return seconds

    def _samples(self, stage: int) -> list[Sample]:
        samples = []
        chunk = self._trace.schedule.chunks[stage]
        for sequence, count in enumerate(self._trace.schedule.num_slices):
            for piece in range(count):
                action = Action(Kind.FORWARD, stage, chunk, sequence, piece)
                start, stop = self._trace.tokens(action)
                forward, backward, weight = (
                    self(action.on(kind)) for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT)
                )
                samples.append(Sample(stop - start, start, forward, backward, weight))
        return samples
