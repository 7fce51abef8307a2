"""Bytes that a rank sends in a collective, declared from sizes. Needs no torch."""

from typing import Literal, get_args

from blocks._checks import check, check_positive

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "narrow", "mask"]
"""What moves a tensor from one placement to another; the last two send nothing."""

_PARTS_SENT = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}


def collective_bytes(
    collective: Collective, num_elements: int, itemsize: int, num_ranks: int
) -> int:
    """Bytes that each rank sends, which is also what it receives: the least that will do.

    Uneven parts travel padded to the longest, as ``blocks.sharding`` sends them.

    Args:
        num_elements: of what a rank holds of the whole: before ``all_reduce``, ``reduce_scatter``
            and ``all_to_all``, after ``all_gather``.
        itemsize: bytes of an element.
        num_ranks: of the group.

    >>> collective_bytes("all_reduce", 10, 4, 2), collective_bytes("all_gather", 10, 4, 4)
    (40, 36)

    Reference:
        Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
        MPICH", 2005, section 3 (the lower bounds).
    """
    names = get_args(Collective)
    check(collective in names, "collective", " or ".join(names), repr(collective))
    check_positive("num_ranks", num_ranks)
    part = -(-num_elements // num_ranks)
    return _PARTS_SENT.get(collective, 0) * (num_ranks - 1) * part * itemsize
