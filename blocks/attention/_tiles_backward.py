"""Tiles of the backward of ``prefill``, found by compiling: the largest that spill nothing."""

from blocks.attention._tiles import Tiles, power_of_two

_ROWS = {
    # (rows, keys, stages) by head_dim up to 64, 128, 256
    ("key", "sm_90"): ((64, 128, 2), (32, 128, 2), (32, 32, 2)),
    ("key", "sm_80"): ((16, 128, 2), (32, 64, 2), (32, 32, 2)),
    ("key", "gfx"): ((64, 64, 1), (16, 64, 1), (16, 32, 1)),
    ("query", "sm_90"): ((128, 64, 2), (128, 64, 2), (64, 16, 2)),
    ("query", "sm_80"): ((128, 64, 2), (64, 64, 2), (32, 32, 2)),
    ("query", "gfx"): ((64, 32, 1), (32, 16, 1), (32, 16, 1)),
}


def backward_tiles(
    which: str, name: str, head_dim: int, group: int, itemsize: int, bent: bool = False
) -> Tiles:
    """Tiles of the backward of ``prefill``: ``which`` gradient, of the ``query`` or the ``key``.

    The key's program keeps two sums, so it takes many keys and few queries at a time. ``bent``: a
    softcap or slopes are on, which need registers for their derivatives.
    """
    if name == "cpu":
        return Tiles(power_of_two(group), 32, 4, 1)
    chip = "gfx" if name.startswith("gfx") else "sm_90" if name == "sm_90" else "sm_80"
    wide = 0 if head_dim <= 64 else 1 if head_dim <= 128 else 2
    if itemsize == 4:  # no float32 matrix instruction to speak of: plain arithmetic
        rows, keys = (16, 16) if wide == 2 or chip == "gfx" else (16, 32)
        return Tiles(max(rows, power_of_two(group)), keys, 8, 1)
    rows, keys, stages = _ROWS[which, chip][wide]
    if bent and (which, chip, wide) == ("query", "sm_90", 1):
        keys = 32
    return Tiles(max(rows, power_of_two(group)), keys, 8, stages)
