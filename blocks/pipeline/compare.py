"""``compare``: two traces side by side. Needs no torch."""

import dataclasses
import statistics
from collections.abc import Iterator

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.measured import measured_timeline
from blocks.pipeline.trace import Trace


@dataclasses.dataclass(frozen=True)
class KindTimes:
    """Seconds of one kind of action: how many there are in each trace, and their medians."""

    kind: Kind
    counts: tuple[int, int]
    medians_s: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Second median over the first; 0 where either trace has none or took no time."""
        first, second = self.medians_s
        return second / first if first > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What differs between two traces.

    kinds: times of every kind of action that either has.
    makespans_s, bubbles: of the compute actions of each.
    first_digest: the earliest action (as the first trace did them) whose digests were recorded in
        both and differ; None where all agree. num_digests: how many could be compared.
    first_loss: the sequence and slice of the first loss that differs in any bit, with both; None
        where all agree. num_losses: how many could be compared.
    """

    kinds: tuple[KindTimes, ...]
    makespans_s: tuple[float, float]
    bubbles: tuple[float, float]
    first_digest: Action | None
    num_digests: int
    first_loss: tuple[int, int, float, float] | None
    num_losses: int

    @property
    def makespan_ratio(self) -> float:
        """Second makespan over the first."""
        first, second = self.makespans_s
        return second / first if first > 0 else 0.0

    def __str__(self) -> str:
        lines = [f"{'':8}{'first':>12}{'second':>12}{'ratio':>8}"]
        for times in self.kinds:
            lines.append(_line(times.kind.value, *times.medians_s, times.ratio))
        lines.append(_line("makespan", *self.makespans_s, self.makespan_ratio))
        lines.append(f"{'bubble':8}{self.bubbles[0]:>12.1%}{self.bubbles[1]:>12.1%}")
        lines.append(f"digests: {_verdict(self.num_digests, self.first_digest)}")
        where = None
        if self.first_loss is not None:
            sequence, piece, first, second = self.first_loss
            where = f"slice {piece} of sequence {sequence}: {first!r} and {second!r}"
        lines.append(f"losses:  {_verdict(self.num_losses, where)}")
        return "\n".join(lines)


def compare(first: Trace, second: Trace) -> Comparison:
    """Times, digests and losses of two steps, whatever their schedules.

    Digests are compared by action, so a run on one rank can be held against one on several where
    the stages and slices are the same.
    """
    counts = tuple(map(_by_kind, (first, second)))
    kinds = tuple(
        KindTimes(
            kind,
            (len(counts[0].get(kind, ())), len(counts[1].get(kind, ()))),
            (_median_s(counts[0].get(kind, [])), _median_s(counts[1].get(kind, []))),
        )
        for kind in Kind
        if kind in counts[0] or kind in counts[1]
    )
    timelines = measured_timeline(first), measured_timeline(second)
    num_digests, first_digest = _first_digest(first, second)
    num_losses, first_loss = _first_loss(first, second)
    return Comparison(
        kinds,
        (float(timelines[0].makespan), float(timelines[1].makespan)),
        (float(timelines[0].bubble), float(timelines[1].bubble)),
        first_digest,
        num_digests,
        first_loss,
        num_losses,
    )


def _by_kind(trace: Trace) -> dict[Kind, list[int]]:
    found: dict[Kind, list[int]] = {}
    for event in trace.events:
        found.setdefault(event.action.kind, []).append(event.duration_ns)
    return found


def _median_s(durations_ns: list[int]) -> float:
    return statistics.median(durations_ns) * 1e-9 if durations_ns else 0.0


def _first_digest(first: Trace, second: Trace) -> tuple[int, Action | None]:
    """How many digests both traces have, and the earliest action where they differ."""
    others = {_anywhere(e.action): e.digest for e in second.events if e.digest}
    both = [
        event
        for event in sorted(first.events, key=lambda event: event.end_ns)
        if event.digest and _anywhere(event.action) in others
    ]
    differ = (e.action for e in both if e.digest != others[_anywhere(e.action)])
    return len(both), next(differ, None)


def _anywhere(action: Action) -> Action:
    """The action without what depends on where its stage runs."""
    return action._replace(chunk=0)


def _first_loss(first: Trace, second: Trace) -> tuple[int, tuple[int, int, float, float] | None]:
    if not (first.losses and second.losses):
        return 0, None
    counts = first.schedule.num_slices, second.schedule.num_slices
    check(counts[0] == counts[1], "losses", f"of slices {counts[0]}", counts[1])
    pairs = list(_pairs(first, second))
    return len(pairs), next((pair for pair in pairs if repr(pair[2]) != repr(pair[3])), None)


def _pairs(first: Trace, second: Trace) -> Iterator[tuple[int, int, float, float]]:
    for sequence, (ours, theirs) in enumerate(zip(first.losses, second.losses, strict=True)):
        for piece, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield sequence, piece, a, b


def _line(name: str, first: float, second: float, ratio: float) -> str:
    return f"{name:8}{first * 1e3:>9.3f} ms{second * 1e3:>9.3f} ms{ratio:>8.3f}"


def _verdict(num_compared: int, where: object) -> str:
    if not num_compared:
        return "none recorded in both"
    return f"all {num_compared} equal" if where is None else f"differ first at {where}"
