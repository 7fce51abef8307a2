"""From orders of steps to a ``Schedule``: placements, expansion to slices, what is not there.

Generators write the order for equally many slices in every sequence, and where their pattern asks
for it for more sequences than there are. ``by_slice`` leaves out what does not exist: whatever
depends on what in the rest is untouched, so an order without deadlock stays one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from blocks._checks import check, check_count
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule

Step: TypeAlias = tuple[Kind, int, int, int]
"""Kind, chunk, sequence, slice."""
Unit: TypeAlias = tuple[int, int]
"""Sequence and slice."""

F, B, W, BW = Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT, Kind.FULL_BACKWARD


def check_sizes(num_ranks: int, num_slices: Sequence[int]) -> None:
    """
    Raises:
        ValueError: no rank, no sequence, or a sequence without slices.
    """
    check_count("num_ranks", num_ranks)
    some = isinstance(num_slices, Sequence) and len(num_slices) > 0
    check(some, "num_slices", "one entry for every sequence", num_slices)
    for count in num_slices:
        check_count("num_slices", count, "a sequence has at least one slice")


def check_chunks(name: str, num_chunks: int, expected: int) -> None:
    """
    Raises:
        ValueError: another number of chunks than the family has.
    """
    hint = "interleaved, looped_bfs, seq1f1b_interleaved and slimpipe take any number"
    check(num_chunks == expected, f"num_chunks of {name}", expected, num_chunks, hint)


def looped(num_ranks: int, num_chunks: int) -> tuple[int, ...]:
    """Stages dealt out in rounds: chunk c of rank r is stage ``c * num_ranks + r``.

    >>> looped(2, 2)
    (0, 1, 0, 1)
    """
    check_count("num_chunks", num_chunks)
    return tuple(range(num_ranks)) * num_chunks


def v_shaped(num_ranks: int) -> tuple[int, ...]:
    """Down the ranks and back up, so that the first rank has the first and the last stage.

    >>> v_shaped(2)
    (0, 1, 1, 0)
    """
    return (*range(num_ranks), *range(num_ranks - 1, -1, -1))


def by_slice(
    name: str,
    placement: tuple[int, ...],
    num_slices: Sequence[int],
    programs: Iterable[Iterable[Step]],
) -> Schedule:
    """The schedule that does ``programs``, less the sequences and slices that do not exist."""
    stages: list[list[int]] = [[] for _ in set(placement)]
    for stage, rank in enumerate(placement):
        stages[rank].append(stage)
    made = tuple(
        tuple(
            Action(kind, stages[rank][chunk], chunk, sequence, piece)
            for kind, chunk, sequence, piece in program
            if sequence < len(num_slices) and piece < num_slices[sequence]
        )
        for rank, program in enumerate(programs)
    )
    return Schedule(name, placement, tuple(num_slices), made)


def expand(program: Iterable[tuple[Kind, int, int]], num_slices: Sequence[int]) -> Iterator[Step]:
    """Steps on whole sequences as steps on their slices: forwards ascending, the rest descending.

    Sequences beyond ``num_slices`` have none.
    """
    for kind, chunk, sequence in program:
        if sequence < len(num_slices):
            count = num_slices[sequence]
            for piece in range(count) if kind is F else range(count - 1, -1, -1):
                yield kind, chunk, sequence, piece


def forwards(num_sequences: int, num_slices: int) -> list[Unit]:
    """Slices in the order of their forwards."""
    return [(s, piece) for s in range(num_sequences) for piece in range(num_slices)]


def backwards(num_sequences: int, num_slices: int) -> list[Unit]:
    """Slices in the order of their backwards: sequences ascending, slices descending."""
    return [(s, piece) for s in range(num_sequences) for piece in range(num_slices - 1, -1, -1)]
