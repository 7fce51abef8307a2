"""A schedule without backwards, for looking at data that is not trained on. Needs no torch."""

from collections.abc import Sequence

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule


def forward_schedule(
    placement: Sequence[int], num_slices: Sequence[int], edges: tuple[tuple[int, int], ...] = ()
) -> Schedule:
    """Forwards of all slices, as many at a time as there are ranks at one stage after another.

    Every rank follows the same order of all forwards, so nobody waits in a circle.

    >>> forward_schedule((0, 1, 0), (2,)).programs[0]
    (F0(0,0), F0(0,1), F2(0,0), F2(0,1))
    """
    placement = tuple(placement)
    empty = Schedule("forward", placement, tuple(num_slices), ((),) * len(set(placement)), edges)
    units = [(q, s) for q, count in enumerate(num_slices) for s in range(count)]
    programs: list[list[Action]] = [[] for _ in empty.programs]
    for first in range(0, len(units), empty.num_ranks):
        for stage, rank in enumerate(placement):
            for sequence, piece in units[first : first + empty.num_ranks]:
                chunk = empty.chunks[stage]
                programs[rank].append(Action(Kind.FORWARD, stage, chunk, sequence, piece))
    return Schedule(
        empty.name, placement, empty.num_slices, tuple(map(tuple, programs)), empty.edges
    )
