"""How many splits a paged context is cut into, and where.

A decode reads memory and does little else, so it is as fast as its programs keep the memory busy.
The number of splits comes from shapes alone: never from lengths, which the host would have to wait
for, so that a captured graph stays right while sequences grow.
"""

from blocks.attention import _tiles
from blocks.attention._call import Call

FIXED_SPLIT = 512
"""Positions of a split where splits lie at fixed positions (``batch_invariant``)."""
ROUNDS = 4
"""Programs aimed at for each processor, and not exceeded, so that rounds come out even. Two that
run at once hide each other's waits."""
LEAST_SPLIT = 256
"""Positions below which a split is more beginning and end than reading."""
MOST_SPLITS = 256
TRAFFIC = 0.1
"""Most bytes of partial outputs, written and read again, for each byte of keys and values."""


def least_split_len(rows: int, head_dim: int, kv_itemsize: int) -> int:
    """Fewest positions of a split whose partial outputs keep to ``TRAFFIC``, in whole tiles.

    Args:
        rows: query heads (times query tokens) that share a key head.
        head_dim: of a head.
        kv_itemsize: bytes of an element of the cache.
    """
    partial = 2 * rows * (head_dim + 1) * 4  # float32 output and LSE, written once and read once
    position = 2 * head_dim * kv_itemsize
    positions = int(partial / (TRAFFIC * position)) + 1
    return max(LEAST_SPLIT, -(-positions // 64) * 64)


def choose_num_splits(
    num_programs: int,
    capacity: int,
    processors: int,
    *,
    rows: int = 1,
    head_dim: int = 128,
    kv_itemsize: int = 2,
) -> int:
    """Splits of each context: enough programs to fill the device, none smaller than it pays.

    As many as keep ``num_programs * num_splits`` within ``ROUNDS`` a processor, and two up to the
    point where programs alone reach that. So there are more than two rounds wherever the context is
    long enough to be cut so often, and at most a quarter of the last one is idle. The number falls
    as programs are added and rises with the capacity, without a cliff in time.

    Args:
        num_programs: programs without splits: sequences x key heads.
        capacity: positions the block table can hold for one sequence.
        processors: of the device.
        rows, head_dim, kv_itemsize: see ``least_split_len``.

    >>> choose_num_splits(8, 32768, 132), choose_num_splits(1024, 32768, 132)
    (66, 1)
    """
    wanted = ROUNDS * processors // max(num_programs, 1)
    wanted = max(wanted, 2) if num_programs < ROUNDS * processors else 1
    most = capacity // least_split_len(rows, head_dim, kv_itemsize)
    return max(1, min(wanted, most, MOST_SPLITS))


def num_fixed_splits(capacity: int) -> int:
    """Splits of a context when they lie every ``FIXED_SPLIT`` positions."""
    return max(1, -(-capacity // FIXED_SPLIT))


def num_splits(call: Call, num_programs: int, rows: int, batch_invariant: bool) -> int:
    """``choose_num_splits`` of a paged call; with ``batch_invariant`` its ``num_fixed_splits``."""
    if batch_invariant:
        return num_fixed_splits(call.capacity)
    return choose_num_splits(
        num_programs,
        call.capacity,
        _tiles.num_processors(call.query.device),
        rows=rows,
        head_dim=call.value.shape[-1],
        kv_itemsize=call.key.itemsize,
    )
