"""The tuner of the attention kernels: it writes ``blocks/attention/tuned/<chip>.json``.

    python -m benches.tune --chip sm_90                          # every row, by compile report
    python -m benches.tune --chip sm_90 --op decode --head-dim 128 --write

Candidates are compiled ahead of time, several at once; those that spill, exceed shared memory or
leave no register to spare are dropped. On a machine with that chip the rest are timed in turn with
cold caches, and the row says where and when; without one they are ranked by what the compiler
reports, and the row says that. ``--write`` puts the winners into the table, in place of the rows
for the same calls; without it they are only printed.
"""

import argparse
import concurrent.futures
import datetime
import functools
import importlib.metadata
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch

from benches import machine
from blocks.attention import _tiles, paged_decode, paged_extend, prefill
from blocks.attention._tiles import BYTES, Row, Tiles, power_of_two
from tests.aot import AotReport, kept_report
from tests.attention import aot_cases
from tests.attention.aot_cases import TORCH

GROUPS = (1, 4, 8, 16)
OPERATIONS = ("prefill", "extend", "decode")
FORMS = ("tma_ws", "pointer")
SAME, EIGHT_BITS = ("same",), ("fp8", "int8")
WIDTHS = {
    (("bf16", "fp16"), SAME): (64, 80, 96, 128, 192, 256),
    (("bf16", "fp16"), EIGHT_BITS): (64, 128, 256),
    (("fp32",), SAME): (64, 128, 256),
}
"""Tabled head dimensions by dtypes of query and cache; the nearest one above stands for others."""
REGISTERS = {"sm_80": 240, "sm_90": 240, "gfx942": 500}
"""More leaves no room for the next compiler's choices [registers a thread]."""
IN_FLIGHT = 64 << 10
"""Bytes a processor must have asked for to keep its memory busy: bandwidth times latency."""


class Call(NamedTuple):
    """What one row of a table answers, at every group in ``GROUPS`` and any block size."""

    chip: str
    operation: str
    dtype: tuple[str, ...]
    kv_dtype: tuple[str, ...]
    head_dim: int


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benches.tune", description="Tune attention.")
    parser.add_argument("--chip", required=True, choices=_tiles.CHIPS)
    parser.add_argument("--op", choices=OPERATIONS, help="default: all")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="bf16 stands for fp16 too")
    parser.add_argument("--head-dim", type=int, help="default: all of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once")
    parser.add_argument("--keep", type=int, default=3, help="candidates without a fault to rank")
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    options = parser.parse_args(arguments)
    for name, number in (("--jobs", options.jobs), ("--keep", options.keep)):
        if number < 1:
            parser.error(f"{name}: expected at least 1, got {number}")
    wanted = list(calls(options.chip, options.op, options.dtype, options.head_dim))
    if not wanted:
        widths = sorted({width for of_dtype in WIDTHS.values() for width in of_dtype})
        parser.error(
            f"--head-dim: expected one of the table's, {widths} (fewer in fp32), "
            f"got {options.head_dim}"
        )
    os.environ.pop("TRITON_INTERPRET", None)  # compilers inherit it
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for call in wanted:
            rows = tune(call, pool, options.jobs, options.keep)
            print(*map(_tiles.write_row, rows), sep="\n", flush=True)
            if options.write:
                write(options.chip, rows)


def calls(
    chip: str, operation: str | None, dtype: str | None, head_dim: int | None
) -> Iterator[Call]:
    """The rows to fill."""
    for op in OPERATIONS:
        for (dtypes, kv_dtypes), widths in WIDTHS.items():
            for width in widths:
                if (
                    operation in (None, op)
                    and (dtype is None or dtype in dtypes)
                    and head_dim in (None, width)
                    and (op, kv_dtypes) != ("prefill", EIGHT_BITS)
                ):
                    yield Call(chip, op, dtypes, kv_dtypes, width)


def tune(call: Call, pool: concurrent.futures.Executor, jobs: int, keep: int) -> list[Row]:
    """The best row of every form, the preferred form first."""
    rows = []
    for form in forms(call):
        tried = [tiles for tiles in candidates(call) if tiles.form == form]
        sound = survivors(call, tried, pool, jobs, keep)
        if sound:
            tiles, source = choose(call, sound)
            _, operation, dtype, kv_dtype, head_dim = call
            rows.append(Row(operation, dtype, kv_dtype, head_dim, GROUPS, None, tiles, source))
    return rows


def forms(call: Call) -> tuple[str, ...]:
    """Forms of a kernel, the one that published timings prefer first."""
    if call.chip == "sm_90" and call.operation == "prefill" and call.dtype != ("fp32",):
        return FORMS
    return ("pointer",)


def candidates(call: Call) -> list[Tiles]:
    """Tiles worth compiling, the most work per byte first; those that cannot fit are left out."""
    gpu_of_amd, wide = call.chip.startswith("gfx"), "fp32" in call.dtype
    stages = (1,) if gpu_of_amd else (3, 2, 4)
    if call.operation == "decode":
        sizes = [(16, 64), (16, 128), (16, 32), (16, 16)]
    elif wide and not gpu_of_amd:
        # no such matrix instruction: unrolled arithmetic, which takes minutes to compile
        sizes = [(32, 32), (16, 32)] if call.head_dim <= 128 else [(16, 32), (16, 16)]
        stages = (2,)
    else:
        sizes = [(128, 128), (128, 64), (64, 64), (128, 32), (64, 32), (128, 16), (64, 16)]
        sizes += [(32, 32), (16, 32)]
    found = [
        Tiles(q, kv, warps, s)
        for q, kv in sizes
        for warps in ((8, 4) if q > 32 else (4, 2) if call.operation == "decode" else (4, 8))
        for s in (*stages, *((1,) if wide or call.head_dim > 128 else ()))
    ]
    if "tma_ws" in forms(call):
        found += [Tiles(128, kv, 4, s, "tma_ws") for kv in (128, 64, 32) for s in (3, 2)]
    limit, size = _tiles.shared_limit(call.chip), BYTES[call.dtype[0]]
    return [
        tiles
        for tiles in dict.fromkeys(found)
        if _tiles.shared_estimate(tiles, call.chip, call.head_dim, size) <= limit
        and numbers_per_thread(tiles, call.head_dim) <= REGISTERS[call.chip]
    ]


def numbers_per_thread(tiles: Tiles, head_dim: int) -> int:
    """Output sums and scores that a thread keeps in registers."""
    threads = 32 * tiles.warps * (2 if tiles.form == "tma_ws" else 1)
    return tiles.q * (power_of_two(head_dim) + tiles.kv) // threads


def survivors(
    call: Call, tried: list[Tiles], pool: concurrent.futures.Executor, jobs: int, keep: int
) -> dict[Tiles, AotReport]:
    """Reports of the first ``keep`` candidates that compile without a fault."""
    sound: dict[Tiles, AotReport] = {}
    for start in range(0, len(tried), jobs):
        batch = tried[start : start + jobs]
        for tiles, reports in zip(
            batch, pool.map(functools.partial(compile_tiles, call), batch), strict=True
        ):
            if reports and all(map(is_sound, reports)):
                sound[tiles] = max(reports, key=lambda report: report.registers)
        if len(sound) >= keep:
            break
    return sound


def compile_tiles(call: Call, tiles: Tiles) -> list[AotReport]:
    """Reports of one candidate at group 4, one a cache dtype; none where the compiler gives up."""
    chip, operation, dtype, kv_dtypes, head_dim = call
    try:
        return [
            kept_report(
                aot_cases.case(
                    chip, operation, head_dim, 4, dtype=dtype[0], kv_dtype=kv_dtype, tiles=tiles
                ),
                chip,
            )
            for kv_dtype in kv_dtypes
        ]
    except RuntimeError:
        return []


def is_sound(report: AotReport) -> bool:
    """Whether a candidate neither spills nor asks for more than the chip has."""
    return (
        report.spills == 0
        and report.shared_bytes <= _tiles.shared_limit(report.target)
        and report.registers <= REGISTERS[report.target]
        and not report.missing_claims()
    )


def choose(call: Call, sound: dict[Tiles, AotReport]) -> tuple[Tiles, str]:
    """The fastest of ``sound`` where the chip is here, else the best by its report."""
    triton = importlib.metadata.version("triton")
    if torch.cuda.is_available() and _tiles.chip(machine.default_device()) == call.chip:
        times = time_tiles(call, list(sound))
        best = min(times, key=lambda tiles: times[tiles])
        here, day = machine.environment(), datetime.date.today().isoformat()
        return best, (
            f"timed on {here['device']}, {day}, {here['commit']}, triton {triton}: "
            f"{times[best] * 1e6:.1f} us"
        )
    best = max(sound, key=lambda tiles: merit(call, tiles, sound[tiles]))
    report = sound[best]
    return best, (
        f"compile report, triton {triton}: {report.registers} registers, "
        f"{report.shared_bytes} B shared"
    )


def merit(call: Call, tiles: Tiles, report: AotReport) -> tuple[float, ...]:
    """What a compile report says for a candidate; larger is better, the first number first.

    Decode waits for memory: bytes asked for at once, then programs to take turns, then long tiles.
    The others compute: products per element loaded, less where no second program (or second group
    of warps) computes while the first waits for its product; then depth of the pipeline.
    """
    programs = resident_programs(tiles, report)
    if call.operation == "decode":
        stored = call.kv_dtype[0] if call.kv_dtype != SAME else call.dtype[0]
        tile_bytes = 2 * tiles.kv * call.head_dim * BYTES[stored]
        asked = programs * max(report.shared_bytes, tile_bytes)
        return (min(asked, IN_FLIGHT), min(programs, 2), tiles.kv)
    overlaps = programs >= 2 or tiles.form == "tma_ws"
    return (tiles.q * tiles.kv / (tiles.q + tiles.kv) * (1.0 if overlaps else 0.8), tiles.stages)


def resident_programs(tiles: Tiles, report: AotReport) -> int:
    """Programs one processor holds at a time, by registers, shared memory and warps."""
    if report.target.startswith("gfx"):
        waves = 4 * (512 // max(report.registers, 64))
        return max(1, min(waves // tiles.warps, 65_536 // max(report.shared_bytes, 1)))
    threads = 32 * tiles.warps * (3 if tiles.form == "tma_ws" else 1)
    shared = _tiles.shared_limit(report.target) + 1024
    return max(
        1,
        min(
            65_536 // (-(-report.registers // 8) * 8 * threads),
            shared // (report.shared_bytes + 1024),
            2048 // threads,
        ),
    )


def time_tiles(call: Call, tried: list[Tiles]) -> dict[Tiles, float]:
    """Median seconds of each, timed in turn with cold caches."""
    device = machine.default_device()
    run = make_call(call, device)

    def with_tiles(tiles: Tiles) -> Any:
        with mock.patch.object(_tiles, "choose_tiles", return_value=tiles):
            return run()

    runs = {str(tuple(tiles)): functools.partial(with_tiles, tiles) for tiles in tried}
    medians = machine.race(runs, device)
    return {tiles: medians[str(tuple(tiles))] for tiles in tried}


def make_call(
    call: Call,
    device: torch.device,
    *,
    num_seqs: int = 32,
    length: int = 4096,
    num_kv_heads: int = 8,
    group: int = 4,
) -> Callable[[], Any]:
    """The call at the size it is tuned for: long prompts, or many decodes."""
    dtype, head_dim = TORCH[call.dtype[0]], call.head_dim
    if call.operation != "decode":
        num_seqs = max(1, num_seqs // 16)
    new = {"prefill": length, "extend": max(1, length // 8), "decode": 1}[call.operation]
    lens = torch.full((num_seqs,), length, dtype=torch.int32, device=device)
    bounds = torch.arange(num_seqs + 1, dtype=torch.int32, device=device)
    query = torch.randn(
        (num_seqs * new, num_kv_heads * group, head_dim), device=device, dtype=dtype
    )
    blocks = -(-length // 16)
    shape = (num_seqs * blocks, 16, num_kv_heads, head_dim)
    keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    if call.operation == "prefill":
        key, value = (t.flatten(0, 1)[: num_seqs * length] for t in (keys, values))
        return lambda: prefill(query, key, value, bounds * length, impl="triton")
    scales = {}
    if call.kv_dtype != SAME:
        keys, values = (t.to(torch.float8_e4m3fn) for t in (keys, values))
        scales = dict.fromkeys(("k_scale", "v_scale"), torch.ones(num_kv_heads, device=device))
    order = torch.randperm(num_seqs * blocks, device=device).int().view(num_seqs, blocks)
    paged = query, keys, values, order, lens
    if call.operation == "extend":
        return lambda: paged_extend(*paged, bounds * new, **scales, impl="triton")
    return lambda: paged_decode(*paged, **scales, impl="triton")


def write(chip: str, rows: list[Row]) -> None:
    """Put ``rows`` into the table of ``chip``, in place of rows for the same calls and form."""
    path = _tiles.TABLES / f"{chip}.json"
    old = _tiles.table(chip) if path.exists() else ()
    merged = {_place(row): row for row in (*old, *rows)}
    ordered = sorted(merged.items(), key=lambda item: item[0])
    lines = ",\n".join(_tiles.write_row(row) for _, row in ordered)
    path.write_text(f"[\n{lines}\n]\n")
    _tiles.table.cache_clear()
    _tiles.choose_tiles.cache_clear()


def _place(row: Row) -> tuple[Any, ...]:
    """Sort key: which calls a row answers, and where its form stands among the others."""
    order = FORMS.index(row.tiles.form)
    operation = OPERATIONS.index(row.operation)
    where = (row.head_dim, row.group, row.block_size or 0)
    return operation, -BYTES[row.dtype[0]], row.dtype, row.kv_dtype, *where, order


if __name__ == "__main__":
    main()
