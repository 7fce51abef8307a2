"""``check_bounds``: where the slices of a step's sequences begin and end. Needs no torch."""

import itertools
from collections.abc import Sequence

from blocks._checks import check


def check_bounds(bounds: Sequence[Sequence[int]], num_slices: Sequence[int]) -> None:
    """
    Raises:
        ValueError: other slices than ``num_slices``, or tokens that do not ascend from 0.
    """
    wanted, counts = tuple(num_slices), tuple(len(found) - 1 for found in bounds)
    check(counts == wanted, "bounds", f"slices {wanted} of the sequences", counts)
    for found in bounds:
        whole = all(isinstance(token, int) for token in found)
        ascending = whole and found[0] == 0 and all(a < b for a, b in itertools.pairwise(found))
        check(ascending, "bounds", "whole tokens ascending from 0", list(found))
