"""Figures of planned execution: against the single device, counted against predicted."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benches.figures.row import Measured, Row
from blocks.sharding import Group, Mesh, count, run_local
from recipes.plan.execute import FxOperations, PlannedModule
from recipes.plan.execute.counted_group import counted
from recipes.plan.execute.flops import flop_counter
from recipes.plan.execute.memory_tracker import MemoryTracker
from tests.plan.execute_cases import Case
from tests.plan.executing import random_program
from tests.plan.family_cases import TINY, family_case
from tests.plan.test_execute_families import NUM_PLANS
from tests.plan.trials import PRECISIONS, Precision, trials

COMMAND = "python -m benches.figures --area plan"
SOME = ("mlp:tiny", "gpt2:tiny", "unet:tiny", "dlrm:tiny")
MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2))
ROUTED = ("mixtral:tiny",)
"""Families whose floating point operations depend on the tokens."""


def rows() -> Iterator[Row]:
    for names, num_plans, nightly in ((SOME, 7, False), (TINY, NUM_PLANS, True)):
        what = f"{len(names)} families x {num_plans} random plans"
        command = COMMAND + (" --nightly" if nightly else "")
        for dtype in ("float64", "float32") if nightly else ("float64",):
            precision = PRECISIONS[dtype]
            yield Row(
                f"{what} (data, tensor, pipeline, sharded optimizer) in {dtype}, against one "
                "device in float64: worst relative error of losses and all gradients, three "
                "optimizer steps and one more from the checkpoint of another plan",
                f"<= {precision.tolerance:.0e}",
                command,
                lambda names=names, num_plans=num_plans, precision=precision: _numerics(
                    names, num_plans, precision
                ),
                nightly,
            )
        yield Row(
            f"{len(names)} families x {3 if not nightly else 9} random plans: ranks whose "
            "collectives, bytes and FLOPs are as predicted; predicted over measured peak memory",
            "all; 0.95 to 1.05",
            command,
            lambda names=names, few=3 if not nightly else 9: _counts(names, few),
            nightly,
        )


def _numerics(names: tuple[str, ...], num_plans: int, precision: Precision) -> Measured:
    worst, where = 0.0, ""
    for at, name in enumerate(names):
        print(f"  {name}, {at + 1} of {len(names)}", file=sys.stderr)
        case = family_case(name, dtype=precision.dtype)
        with tempfile.TemporaryDirectory() as folder:
            double = family_case(name) if precision.dtype == torch.float32 else None
            seeds, where_to = range(num_plans), Path(folder)
            errors = trials(case, seeds, precision.optimizer, where_to, double=double)
        worst, where = max((worst, where), (max(errors), name.removesuffix(":tiny")))
    text = f"{worst:.1e} ({where}) over {len(names) * num_plans} plans"
    return Measured(text, worst <= precision.tolerance)


def _counts(names: tuple[str, ...], num_plans: int) -> Measured:
    exact = total = 0
    ratios: list[float] = []
    for name in names:
        case = family_case(name)
        for seed in range(num_plans):
            for same, ratio in _counted(case, seed, flops=name not in ROUTED):
                exact += same
                total += 1
                ratios.append(ratio)
    text = f"{exact} of {total} ranks; {min(ratios):.3f} to {max(ratios):.3f}"
    return Measured(text, exact == total and min(ratios) >= 0.95 and max(ratios) <= 1.05)


def _counted(case: Case, seed: int, *, flops: bool) -> list[tuple[bool, float]]:
    """For every rank whether traffic and work were as predicted, and predicted over real peak."""
    program = random_program(case.traced, MESHES[seed % 3], seed)
    state, batch = case.state, case.batch(0)

    def work(rank: int, groups: Mapping[str, Group]) -> tuple[bool, float]:
        counters, tracker, counter = counted(groups), MemoryTracker(), flop_counter()
        with tracker:
            module = PlannedModule(program, FxOperations(case.traced.ops), rank, counters, state)
            tracker.restart_peak()
            module.accumulate(batch)
            module.update()
        predicted = count(program, rank)
        same = True
        for axis, group in counters.items():
            sums: dict[str, tuple[int, int]] = {}
            for entry in predicted.traffic:
                if entry.axis == axis:
                    number, sent = sums.get(entry.collective, (0, 0))
                    sums[entry.collective] = (number + entry.number, sent + entry.bytes)
            same = same and sums == {k: (n, group.bytes[k]) for k, n in group.number.items()}
        with counter:  # takes operations apart, whose parts the tracker would see
            module.accumulate(batch)
        work = predicted.forward_flops + predicted.backward_flops
        same = same and (not flops or counter.get_total_flops() == work)
        return same, predicted.peak_bytes() / tracker.peak

    return run_local(program.mesh, work)
