"""Compile-time choices of the attention kernels: a table of rows, and a rule for the rest.

``tuned/<chip>.json`` holds one row a line, written by ``python -m benches.tune``; the README of
this block says how to read it. ``choose_tiles`` looks a call up. Where no row matches, ``fit``
takes the nearest one and shrinks it until the estimate of shared memory and registers holds. No
``@triton.autotune``: the interpreter cannot run it, and a table keeps launches free of search.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

TABLES = Path(__file__).parent / "tuned"
CHIPS = ("gfx942", "sm_80", "sm_90")
"""Chips with a table of their own."""
SHARED_LIMIT = {"sm_80": 166_912, "sm_87": 166_912, "sm_90": 232_448, "sm_100": 232_448}
"""Shared memory of one program [bytes]; other NVIDIA chips 101,376, AMD chips 65,536."""
NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.int8: "int8",
    torch.uint8: "fp8",  # as a chip that cannot convert it is handed its bytes
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}


class Tiles(NamedTuple):
    """Compile-time choices of one launch.

    q: rows of a tile. kv: keys of a tile. warps: of a program. stages: of the software pipeline.
    form: ``pointer`` or, for Hopper's prefill, ``tma_ws`` (bulk tensor loads, specialised warps).
    """

    q: int
    kv: int
    warps: int
    stages: int
    form: str = "pointer"


class Row(NamedTuple):
    """One line of a table: the calls it answers, the choice, and where the choice comes from.

    operation: ``prefill``, ``extend`` or ``decode``.
    dtype: of the query, as in ``BYTES``.
    kv_dtype: of the cache; ``same`` where it is the query's.
    block_size: of the cache; None for any.
    """

    operation: str
    dtype: tuple[str, ...]
    kv_dtype: tuple[str, ...]
    head_dim: int
    group: tuple[int, ...]
    block_size: int | None
    tiles: Tiles
    source: str


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


@functools.cache
def chip(device: torch.device) -> str:
    """``sm_80``, ``sm_90``, ``gfx942`` or what the device says; ``cpu`` in the interpreter."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units); 8 in the interpreter, so that splits are tried."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def converts_float8(name: str) -> bool:
    """Whether the chip converts float8 e4m3 (the format without infinities, bias 7) itself."""
    return name.startswith("sm_") and int(name.removeprefix("sm_")) >= 89


@functools.cache
def choose_tiles(
    operation: str,
    name: str,
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    block_size: int | None = None,
    kv_dtype: torch.dtype | None = None,
    form: str | None = None,
) -> Tiles:
    """The choice for a call on chip ``name``; the first matching row, else the nearest one fitted.

    Args:
        operation: ``prefill``, ``extend`` or ``decode``.
        kv_dtype: of the cache, where it is not that of the query.
        form: only rows of this form; None for the table's preference.
    """
    if name == "cpu" and form != "tma_ws":
        return Tiles(power_of_two(group), 64, 4, 1)
    if name == "cpu":
        return Tiles(16, 64, 4, 1, "tma_ws")
    query_type = NAMES[dtype]
    cache_type = "same" if kv_dtype in (None, dtype) else NAMES[kv_dtype]  # pyright: ignore
    same_chip = name in CHIPS
    rows = [
        row
        for row in table(name if same_chip else nearest_chip(name))
        if row.operation == operation
        and form in (None, row.tiles.form)
        and (same_chip or row.tiles.form == "pointer")
    ]

    def distance(row: Row) -> tuple[int, ...]:
        """How far a row is from the call, the most important difference first."""
        return (
            BYTES[row.dtype[0]] != BYTES[query_type],
            cache_type not in row.kv_dtype,
            row.head_dim < head_dim,
            abs(row.head_dim - head_dim),
            row.block_size not in (None, block_size),
            row.block_size is None,
            min(abs(g - group) for g in row.group),
        )

    row = min(rows, key=distance)  # the first of equals, so rows stand in order of preference
    return fit(row.tiles, name, head_dim, group, BYTES[query_type])


def decode_tiles(
    name: str, head_dim: int, group: int, itemsize: int, quantised: bool = False
) -> Tiles:
    """Where kernels without rows of their own start from: the heads of a group, padded to 16."""
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


def fit(tiles: Tiles, name: str, head_dim: int, group: int, itemsize: int) -> Tiles:
    """``tiles`` with room for a whole group in its rows, shrunk until the chip can hold it."""
    rows = power_of_two(group)
    if tiles.form == "pointer":
        tiles = tiles._replace(q=max(tiles.q, rows))
    limit = shared_limit(name)
    while shared_estimate(tiles, name, head_dim, itemsize) > limit:
        if tiles.stages > 1:
            tiles = tiles._replace(stages=tiles.stages - 1)
        elif tiles.kv > 16:
            tiles = tiles._replace(kv=tiles.kv // 2)
        elif tiles.q > rows:
            tiles = tiles._replace(q=tiles.q // 2)
        else:
            break
    # output sums in registers: at most 128 of them a thread
    sums = tiles.q * power_of_two(head_dim) // 32
    while tiles.form == "pointer" and sums > 128 * tiles.warps and tiles.warps < 8:
        tiles = tiles._replace(warps=tiles.warps * 2)
    return tiles


def shared_estimate(tiles: Tiles, name: str, head_dim: int, itemsize: int) -> int:
    """Shared memory of a program [bytes], never less than the compiler's figure.

    Queries once; keys and values once a stage. AMD keeps them in registers and exchanges layouts.
    """
    row = power_of_two(head_dim) * itemsize
    if name.startswith("gfx"):
        return max(tiles.q, 2 * tiles.kv) * row
    keys = 2 * tiles.stages * tiles.kv * row
    if tiles.form == "tma_ws":
        copies = tiles.stages if tma_persists(head_dim) else 1
        return copies * tiles.q * row + keys + max(16_384, tiles.q * row // 2) + 2048
    return tiles.q * row + keys


def tma_persists(head_dim: int) -> bool:
    """Whether the form for Hopper may have one program do several blocks of queries: whole heads
    side by side in a descriptor, and room for a second block while the first is at work."""
    return head_dim in (16, 32, 64, 128)


def shared_limit(name: str) -> int:
    """Shared memory one program may use [bytes]."""
    return SHARED_LIMIT.get(name, 65_536 if name.startswith("gfx") else 101_376)


def nearest_chip(name: str) -> str:
    """The tabled chip whose rows a chip without a table starts from."""
    if name.startswith("gfx"):
        return "gfx942"
    generation = name.removeprefix("sm_")
    return "sm_90" if generation.isdigit() and int(generation) >= 90 else "sm_80"


@functools.cache
def table(name: str) -> tuple[Row, ...]:
    """The rows of a chip, in order of preference."""
    return tuple(read_row(row) for row in json.loads((TABLES / f"{name}.json").read_text()))


def read_row(row: dict[str, Any]) -> Row:
    """A ``Row`` from its JSON object."""
    found = dict(row)
    tiles = Tiles(*(found.pop(field) for field in Tiles._fields))
    for field in ("dtype", "kv_dtype", "group"):
        found[field] = tuple(found[field])
    return Row(**found, tiles=tiles)


def write_row(row: Row) -> str:
    """A row as one line of JSON; ``read_row`` undoes it."""
    fields = row._asdict()
    tiles = fields.pop("tiles")._asdict()
    source = fields.pop("source")
    return json.dumps({**fields, **tiles, "source": source})
