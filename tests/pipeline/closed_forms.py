"""Closed forms of schedules, each as cases: what the formula says and what the simulator finds."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from blocks.pipeline import (
    SCHEDULES,
    Action,
    Kind,
    MemorySizes,
    Schedule,
    Timeline,
    peak_bytes,
    simulate,
)
from blocks.pipeline.schedules import token_zero_bubble

Number = int | Fraction | float
TIMES = ((1, 1, 1), (2, 3, 1), (Fraction(1, 3), Fraction(1, 2), Fraction(1, 5)), (3, 4, 3))
"""F, B and W of a rank's whole part for a whole sequence."""


class Case(NamedTuple):
    """expected, found: numbers, or lists of one for every rank."""

    family: str
    sizes: str
    what: str
    expected: object
    found: object


class Run(NamedTuple):
    """A family at one size, simulated with the times of a sequence shared evenly."""

    schedule: Schedule
    time: Timeline
    times: Sequence[int | Fraction]
    num_ranks: int
    num_sequences: int
    num_slices: int
    num_chunks: int

    def case(self, what: str, expected: object, found: object) -> Case:
        sizes = f"P={self.num_ranks} S={self.num_sequences} M={self.num_slices}"
        sizes += f" v={self.num_chunks} F,B,W={[str(time) for time in self.times]}"
        return Case(self.schedule.name, sizes, what, expected, found)

    def idle(self, expected: Number) -> Iterator[Case]:
        """Idle time of every rank, and the bubble it comes to."""
        ranks = range(self.num_ranks)
        yield self.case("idle", [expected] * len(ranks), [self.time.idle(r) for r in ranks])
        work = self.num_sequences * sum(self.times)
        yield self.case("bubble", expected / Fraction(work + expected), self.time.bubble)

    def activations(self, expected: Sequence[Number]) -> Case:
        """Peak activations of every rank; a sequence on a whole rank counts 1."""
        unit = Fraction(1, self.num_slices * self.num_chunks)
        found = peak_bytes(self.schedule, MemorySizes(activations=lambda stage, n, start: unit))
        return self.case("peak", list(expected), list(found))

    def kept(self) -> int:
        """The most slices at any rank between their forward and their weight gradient."""
        most = 0
        for program in self.schedule.programs:
            now = 0
            for action in program:
                now += (action.kind is Kind.FORWARD) - (action.kind is Kind.WEIGHT)
                most = max(most, now)
        return most


def run(
    family: str, ranks: int, sequences: int, times: Sequence, slices: int = 1, chunks: int = 1
) -> Run:
    schedule = SCHEDULES[family](ranks, (slices,) * sequences, num_chunks=chunks)
    forward, backward, weight = (Fraction(time) / (slices * chunks) for time in times)
    cost = {"F": forward, "B": backward, "W": weight, "BW": backward + weight}
    time = simulate(schedule, lambda action: cost[action.kind.value])
    return Run(schedule, time, times, ranks, sequences, slices, chunks)


def cases(family: str, num_ranks: Iterable[int] = (1, 2, 3, 4, 6)) -> Iterator[Case]:
    """All cases of a family."""
    for ranks in num_ranks:
        yield from _CASES[family](family, ranks)


def _by_sequence(family: str, ranks: int) -> Iterator[Case]:
    for sequences in (1, 2, 5, 9):
        for times in TIMES:
            found = run(family, ranks, sequences, times)
            yield from found.idle((ranks - 1) * sum(times))
            reach = 2 if family == "eager_1f1b" else 1
            most = [min(reach * (ranks - 1 - rank) + 1, sequences) for rank in range(ranks)]
            yield found.activations([sequences] * ranks if family == "gpipe" else most)


def _by_slice(family: str, ranks: int) -> Iterator[Case]:
    for slices in (1, 2, 3, 8):
        for sequences in (1, 2, 5):
            for times in TIMES[1:3]:
                found = run(family, ranks, sequences, times, slices)
                yield from found.idle(Fraction((ranks - 1) * sum(times)) / slices)
                most = [
                    min(Fraction(slices + ranks - 1 - rank, slices), sequences)
                    for rank in range(ranks)
                ]
                yield found.activations([sequences] * ranks if family == "terapipe" else most)
    if family == "terapipe":
        yield from _unequal(ranks)


def _unequal(ranks: int) -> Iterator[Case]:
    """TeraPipe's makespan of unequal slices."""
    forward, backward = (5, 3, 4, 1), (7, 9, 2, 6)
    cost = {Kind.FORWARD: forward, Kind.FULL_BACKWARD: backward}
    for sequences in (1, 3):
        schedule = SCHEDULES["terapipe"](ranks, (4,) * sequences)
        found = simulate(schedule, lambda action: cost[action.kind][action.slice]).makespan
        work = sequences * sum(forward + backward)
        expected = work + (ranks - 1) * (max(forward) + max(backward))
        yield Case("terapipe", f"P={ranks} S={sequences} unequal", "makespan", expected, found)


def _by_chunk(family: str, ranks: int) -> Iterator[Case]:
    whole = family in ("interleaved", "looped_bfs")
    for slices in (1,) if whole else sorted({1, 2, ranks, 2 * ranks}):
        if family == "slimpipe" and slices % ranks:
            continue
        a_round = 1 if family == "slimpipe" else -(-ranks // slices)
        for chunks in (1, 2, 3):
            for rounds in (1, 2, 3):
                sequences, size = a_round * rounds, a_round * slices
                found = run(family, ranks, sequences, TIMES[1], slices, chunks)
                yield from found.idle(Fraction((ranks - 1) * sum(TIMES[1]), slices * chunks))
                steps = 2 if chunks > 1 else 1
                units = [
                    (chunks - 1) * size + steps * (ranks - 1 - rank) + slices
                    for rank in range(ranks)
                ]
                most = [min(Fraction(u, slices * chunks), sequences) for u in units]
                yield found.activations([sequences] * ranks if family == "looped_bfs" else most)


def _split(family: str, ranks: int) -> Iterator[Case]:
    """ZB-H1, and the same over slices."""
    for slices in (1,) if family == "zb_h1" else (1, 4):
        for times in TIMES if family == "zb_h1" else TIMES[:3]:
            for sequences in (ranks, 2 * ranks + 1):
                found = run(family, ranks, sequences, times, slices)
                forward, backward, weight = times
                idle = Fraction((ranks - 1) * (forward + backward - weight)) / slices
                yield from found.idle(idle)
                yield found.case("slices kept", slices + ranks - 1, found.kept())
    if family == "token_zero_bubble":
        yield from _twice_the_memory(ranks)


def _twice_the_memory(ranks: int) -> Iterator[Case]:
    """Token-level zero bubble that may keep as much as ZB-H2."""
    for slices in (1, 4):
        for f, b, w in ((2, 3, 2), (2, 3, 1)):
            cost = {"F": f, "B": b, "W": w}
            sequences = 2 * ranks + 1

            def duration(action: Action, cost: dict = cost) -> int:
                return cost[action.kind.value]

            kept = slices + 2 * (ranks - 1)
            made = token_zero_bubble(ranks, (slices,) * sequences, duration=duration, max_kept=kept)
            time = simulate(made, duration)
            stalled = max(time.stalled(rank) for rank in range(ranks))
            sizes = f"P={ranks} S={sequences} M={slices} F,B,W={f},{b},{w} twice"
            expected = (ranks - 1) * (f + b - 2 * w)
            yield Case("token_zero_bubble", sizes, "stalled", expected, stalled)


def _zb_h2(family: str, ranks: int) -> Iterator[Case]:
    for times in TIMES[:3]:
        for sequences in (2 * ranks - 1, 3 * ranks):
            found = run(family, ranks, sequences, times)
            forward, backward, weight = times
            stalled = max(found.time.stalled(rank) for rank in range(ranks))
            yield found.case("stalled", (ranks - 1) * (forward + backward - 2 * weight), stalled)
            yield found.case("slices kept", 2 * ranks - 1, found.kept())


def _zb_v(family: str, ranks: int) -> Iterator[Case]:
    for sequences in (2 * ranks - 1, 2 * ranks, 3 * ranks + 1):
        found = run(family, ranks, sequences, TIMES[0], chunks=2)
        stalled = [found.time.stalled(rank) for rank in range(ranks)]
        yield found.case("stalled", [0] * ranks, stalled)
        yield found.activations([ranks] * ranks)


_CASES = {
    "eager_1f1b": _by_sequence,
    "gpipe": _by_sequence,
    "interleaved": _by_chunk,
    "looped_bfs": _by_chunk,
    "one_f_one_b": _by_sequence,
    "seq1f1b": _by_slice,
    "seq1f1b_interleaved": _by_chunk,
    "slimpipe": _by_chunk,
    "terapipe": _by_slice,
    "token_zero_bubble": _split,
    "zb_h1": _split,
    "zb_h2": _zb_h2,
    "zb_v": _zb_v,
}
