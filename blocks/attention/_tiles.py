"""Tile sizes of the Triton kernels: a small table by chip and head dimension.

No ``@triton.autotune``: the interpreter cannot run it, and a table keeps launches free of search.
``warps`` and ``stages`` are fitted to shared memory (163 KB on sm_80, 227 KB on sm_90, 64 KB on
gfx942) and to registers; the ahead-of-time tests compile every row and fail on spills.
"""

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Compile-time choices of one launch: rows and keys of a tile, warps, pipeline stages."""

    q: int
    kv: int
    warps: int
    stages: int


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


def chip(device: torch.device) -> str:
    """``sm_80``, ``sm_90``, ``gfx942`` or what the device says; ``cpu`` in the interpreter."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units); 8 in the interpreter, so that splits are tried."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def converts_float8(name: str) -> bool:
    """Whether the chip converts float8 e4m3 (the format without infinities, bias 7) itself."""
    return name.startswith("sm_") and int(name.removeprefix("sm_")) >= 89


def attend_tiles(
    name: str, head_dim: int, group: int, itemsize: int, quantised: bool = False
) -> Tiles:
    """Tiles of ``prefill`` and ``paged_extend``: rows are (query, head of the group).

    ``itemsize`` is that of queries. Quantised keys pass through registers, which gfx942 has no
    more of.
    """
    if name == "cpu":
        return Tiles(power_of_two(group), 64, 4, 1)
    wide = power_of_two(head_dim) * itemsize // 2  # head_dim in units of 16 bits
    if name.startswith("gfx"):
        rows, keys, warps, stages = (128, 32, 8, 1) if wide <= 128 else (64, 16, 8, 1)
        keys = 16 if quantised else keys
    elif name == "sm_90" and wide <= 128:
        rows, keys, warps, stages = 128, 64, 8, 3
    elif name == "sm_90" and itemsize == 4:
        rows, keys, warps, stages = 16, 32, 4, 1  # no float32 matrix instruction: plain arithmetic
    elif wide <= 64:
        rows, keys, warps, stages = 128, 64, 8, 3
    elif wide <= 128:
        rows, keys, warps, stages = 64, 64, 8, 2
    elif wide <= 256:
        rows, keys, warps, stages = 64, 32, 8, 2
    else:
        rows, keys, warps, stages = 32, 32, 8, 1
    return Tiles(max(rows, power_of_two(group)), keys, warps, stages)


def decode_tiles(
    name: str, head_dim: int, group: int, itemsize: int, quantised: bool = False
) -> Tiles:
    """Tiles of ``paged_decode``: rows are the heads of a group, padded to 16."""
    rows = power_of_two(group)
    if name == "cpu":
        return Tiles(rows, 64, 4, 1)
    wide = power_of_two(head_dim) * itemsize // 2
    if name.startswith("gfx"):
        return Tiles(rows, 64 if wide <= 128 and not quantised else 32, 4, 1)
    return Tiles(rows, 64 if wide <= 256 else 32, 4, 3 if wide <= 128 else 2)


def merge_states(head_dim: int) -> int:
    """States ``merge_states`` reads at a time: as many as a few registers a thread hold."""
    return max(2, min(16, 2048 // power_of_two(head_dim)))
