"""Tile sizes of the matrix kernels: tables by chip and number of rows.

Every row of the tables is compiled ahead of time by the tests, which fail on spills and on shared
memory beyond the chip's. No search at launch.
"""

import os
from typing import NamedTuple

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take."""


class Tiles(NamedTuple):
    """Compile-time choices of one launch: rows, outputs and inputs of a tile, warps, stages."""

    rows: int
    outs: int
    ins: int
    warps: int
    stages: int


Table = dict[str, tuple[tuple[int, Tiles], ...]]
"""By chip: (up to how many rows, tiles), the last one for any number."""
ANY = 1 << 62

DECODE: Table = {
    "sm_80": (
        (16, Tiles(16, 64, 128, 4, 4)),
        (64, Tiles(64, 64, 128, 4, 3)),
        (ANY, Tiles(128, 64, 64, 8, 3)),
    ),
    "sm_90": (
        (16, Tiles(16, 64, 128, 4, 5)),
        (64, Tiles(64, 64, 128, 4, 4)),
        (ANY, Tiles(128, 128, 64, 8, 4)),
    ),
    "gfx942": (
        (16, Tiles(16, 64, 128, 4, 2)),
        (ANY, Tiles(64, 64, 64, 4, 2)),
    ),
    "cpu": ((ANY, Tiles(16, 32, 64, 4, 1)),),
}
"""``quant_linear`` with x as it is: outputs stand on the left of the product."""

SCALED: Table = {
    "sm_80": ((64, Tiles(64, 64, 128, 4, 4)), (ANY, Tiles(128, 128, 128, 8, 3))),
    "sm_90": ((64, Tiles(64, 64, 128, 4, 5)), (ANY, Tiles(128, 128, 128, 8, 4))),
    "gfx942": ((64, Tiles(64, 64, 128, 4, 2)), (ANY, Tiles(128, 128, 64, 8, 2))),
    "cpu": ((ANY, Tiles(16, 32, 64, 4, 1)),),
}
"""``quant_linear`` with rounded rows, where the matrix units know the format."""

SCALED_BYTES: Table = {
    "sm_80": ((ANY, Tiles(64, 64, 64, 4, 3)),),
    "gfx942": ((ANY, Tiles(64, 64, 64, 4, 1)),),
    "cpu": ((ANY, Tiles(16, 32, 64, 4, 1)),),
}
"""The same for fp8 where they do not."""

GROUPED: Table = {
    "sm_80": (
        (16, Tiles(16, 128, 64, 4, 4)),
        (64, Tiles(64, 128, 64, 4, 3)),
        (ANY, Tiles(128, 128, 64, 8, 3)),
    ),
    "sm_90": (
        (16, Tiles(16, 128, 128, 4, 4)),
        (64, Tiles(64, 128, 64, 4, 4)),
        (ANY, Tiles(128, 128, 64, 8, 4)),
    ),
    "gfx942": (
        (16, Tiles(16, 128, 64, 4, 2)),
        (ANY, Tiles(128, 128, 32, 8, 2)),
    ),
    "cpu": ((ANY, Tiles(16, 32, 32, 4, 1)),),
}
"""``grouped_linear`` and the gradient of its rows, by rows a group on average."""

GROUPED_WEIGHT: Table = {
    "sm_80": ((ANY, Tiles(64, 128, 64, 8, 2)),),
    "sm_90": ((ANY, Tiles(64, 128, 128, 8, 3)),),
    "gfx942": ((ANY, Tiles(32, 128, 64, 8, 1)),),
    "cpu": ((ANY, Tiles(16, 32, 32, 4, 1)),),
}
"""The gradient of the weights of ``grouped_linear``: rows are what is summed over."""

PLAIN = Tiles(32, 64, 32, 4, 2)
"""float32 has no matrix unit of its own precision: plain arithmetic in small tiles."""


def choose(table: Table, device: torch.device, num_rows: int, itemsize: int = 2) -> Tiles:
    """The row of ``table`` for this chip; an unknown one gets that of sm_80, AMD's of gfx942."""
    name = chip(device)
    if name != "cpu" and itemsize > 2:
        return PLAIN
    known = table.get(name) or table["gfx942" if name.startswith("gfx") else "sm_80"]
    return next(tiles for limit, tiles in known if num_rows <= limit)


def chip(device: torch.device) -> str:
    """``sm_80``, ``sm_90``, ``gfx942`` or what the device says; ``cpu`` in the interpreter."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def launch_options(tiles: Tiles) -> dict[str, int]:
    return {"num_warps": tiles.warps, "num_stages": tiles.stages}


def settings(dtype: torch.dtype) -> dict[str, object]:
    """The constexprs of ``product``."""
    precision = "ieee" if dtype == torch.float32 else "tf32"
    return {"INTERPRET": interpreted(), "PRECISION": precision}


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << max(n - 1, 0).bit_length())
