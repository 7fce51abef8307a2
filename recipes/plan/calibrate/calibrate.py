"""``calibrate``: a cluster file of this machine."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import torch

from blocks._checks import check, check_count, check_positive
from blocks.sharding.cluster import (
    Cluster,
    CollectiveTable,
    Curve,
    DeviceKind,
    Node,
    fit_line,
    held_out_errors,
    never_falling,
)
from recipes.plan.calibrate.device import measure_device, measured_on
from recipes.plan.calibrate.links import link_of, measure_tables
from recipes.plan.model import torch_dtype
from recipes.plan.ranks import run_ranks


def calibrate(
    ranks: Sequence[int],
    *,
    device_type: str = "cpu",
    num_devices: int | None = None,
    dtypes: Sequence[str] = ("float32", "float64", "bfloat16"),
    budget_s: float = 0.2,
    sizes: Sequence[int] | None = None,
    on_progress: Callable[[str], None] = print,
) -> Cluster:
    """Measures this machine and returns it as a cluster of one node.

    Args:
        ranks: sizes of the groups whose collectives are measured.
        device_type: ``cpu`` for processes over gloo, ``cuda`` for devices over NCCL.
        num_devices: of the node; default the largest of ``ranks``.
        dtypes: to multiply in.
        budget_s: for each size of each probe; at least five calls.
        sizes: bytes that a rank sends in a collective; default a few KiB to many MiB.
        on_progress: is told each result, and at the end how far it can be trusted.

    Raises:
        ValueError: no ranks, or more than there are accelerators; a dtype that there is not.
    """
    if device_type == "cuda":
        there = torch.cuda.is_available()
        check(there, "device", "cpu on this machine", "cuda", "torch finds no accelerator")
    for dtype in dtypes:
        torch_dtype("dtypes", dtype)
    check(bool(ranks) and min(ranks) > 1, "ranks", "group sizes of 2 or more", list(ranks))
    check_positive("budget_s", budget_s)
    count = max(ranks) if num_devices is None else num_devices
    check_count("num_devices", count)
    device = torch.device(device_type)
    if device_type == "cuda":
        there = torch.cuda.device_count()
        check(max(ranks) <= there, "ranks", f"no more than the {there} devices", list(ranks))
    settings = (tuple(dtypes), budget_s, count)
    if device_type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            kind = _kind(device, *settings, on_progress)
        finally:
            torch.set_num_threads(threads)
    else:
        kind = run_ranks(1, _kind, (*settings, _say), device_type)[0]
    tables: list[CollectiveTable] = []
    for num_ranks in sorted(set(ranks)):
        tables += measure_tables(
            num_ranks, device_type, budget_s=budget_s, sizes=sizes, on_progress=on_progress
        )
    for text in residuals(tables):
        on_progress(text)
    tables = [dataclasses.replace(t, curve=_tidy(t.curve)) for t in tables]
    backend = "gloo" if device_type == "cpu" else "NCCL"
    link = link_of(f"{backend} inside of a machine", tables, f"measured {measured_on(device)}")
    cores = len(os.sched_getaffinity(0)) if device_type == "cpu" else None
    name = f"{cores}xCPU" if cores is not None else f"{count}x{kind.name}"
    return Cluster(name, (kind,), (link,), (Node(kind.name, count, link.name, cores),))


def residuals(tables: Sequence[CollectiveTable]) -> list[str]:
    """How well collectives can be told from half of the sizes: mean and worst error at the other
    half of a fitted line and of the curve, and how far calls lie from one another."""
    lines = ["errors at every second size, from the others (mean, worst):"]
    for table in tables:
        if len(table.curve.at) < 3:
            continue
        errors = (held_out_errors(table.curve, model) for model in (fit_line, never_falling))
        line, curve = (f"{sum(e) / len(e):.1%}, {max(e):.1%}" for e in errors)
        spread = f"; spread of calls {max(table.curve.spread):.0%}" if table.curve.spread else ""
        what = f"{table.collective} of {table.num_ranks} ranks, {table.clock}"
        lines.append(f"  {what}: line {line}; curve {curve}{spread}")
    return lines


def _tidy(curve: Curve) -> Curve:
    """Never falling, four digits."""
    rising = never_falling(curve)
    return Curve(rising.at, tuple(float(f"{s:.4g}") for s in rising.seconds), rising.spread)


def _kind(
    device: torch.device,
    dtypes: Sequence[str],
    budget_s: float,
    num_sharing: int,
    on_progress: Callable[[str], None],
) -> DeviceKind:
    return measure_device(
        device, dtypes, budget_s=budget_s, num_sharing=num_sharing, on_progress=on_progress
    )


def _say(text: str) -> None:
    print(text, flush=True)
