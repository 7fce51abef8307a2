"""Cuts that need no search: equal lengths, and equal shares of a causal layer's arithmetic."""

import math

from blocks._checks import check, check_count
from blocks.pipeline.slice_time import Number


def uniform_slices(seq_len: int, num_slices: int, *, granularity: int = 1) -> tuple[int, ...]:
    """Bounds of slices as equal in length as multiples of ``granularity`` allow.

    >>> uniform_slices(100, 4), uniform_slices(100, 3, granularity=8)
    ((0, 25, 50, 75, 100), (0, 32, 64, 100))
    """
    _check_sizes(seq_len, num_slices, granularity)
    return _rounded(
        [seq_len * i / num_slices for i in range(1, num_slices)], seq_len, num_slices, granularity
    )


def equal_flop_slices(
    alpha: Number, seq_len: int, num_slices: int, *, granularity: int = 1
) -> tuple[int, ...]:
    """Bounds of slices that take equal arithmetic, first longest, in closed form.

    Args:
        alpha: share of attention in the arithmetic of the whole sequence, 0 to 1.

    Reference: Sun et al. 2024, Seq1F1B, section 3.3 (computation-wise partition).

    >>> equal_flop_slices(0.5, 1024, 4)
    (0, 375, 633, 843, 1024)
    """
    _check_sizes(seq_len, num_slices, granularity)
    check(0 <= alpha <= 1, "alpha", "a share between 0 and 1", alpha)
    # (1 - alpha) x + alpha x² = i / M, in the form that alpha = 0 does not divide by.
    shares = [i / num_slices for i in range(1, num_slices)]
    linear = 1 - alpha
    cuts = [2 * s / (linear + math.sqrt(linear * linear + 4 * alpha * s)) for s in shares]
    return _rounded([seq_len * cut for cut in cuts], seq_len, num_slices, granularity)


def _check_sizes(seq_len: int, num_slices: int, granularity: int) -> None:
    check_count("seq_len", seq_len)
    check_count("num_slices", num_slices)
    check_count("granularity", granularity)


def _rounded(cuts: list[float], seq_len: int, num_slices: int, granularity: int) -> tuple[int, ...]:
    """Cuts on the nearest multiples that leave at least one cell to every slice."""
    num_cells = -(-seq_len // granularity)
    ok = 1 <= num_slices <= num_cells
    hint = "cut into fewer slices or on a finer granularity"
    check(ok, "num_slices", f"1 to {num_cells} slices of {granularity}", num_slices, hint)
    bounds = [0]
    for i, cut in enumerate(cuts, start=1):
        cell = min(max(round(cut / granularity), bounds[-1] + 1), num_cells - num_slices + i)
        bounds.append(cell)
    return (*(cell * granularity for cell in bounds), seq_len)
