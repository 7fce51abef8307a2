"""Figures of planned execution: against the single device, counted against predicted."""

from collections.abc import Iterator, Mapping

from benches.figures.row import Measured, Row
from blocks.sharding import Group, Mesh, count, run_local
from recipes.plan.execute import FxOperations, PlannedModule
from recipes.plan.execute.counted_group import counted
from recipes.plan.execute.flops import flop_counter
from recipes.plan.execute.memory_tracker import MemoryTracker
from tests.plan.execute_cases import Case
from tests.plan.executing import Run, random_program, run_alone
from tests.plan.family_cases import TINY, family_case
from tests.plan.test_execute_families import NUM_PLANS, run_plan

COMMAND = "python -m benches.figures --area plan"
SOME = ("mlp:tiny", "gpt2:tiny", "unet:tiny", "dlrm:tiny")
MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2))
ROUTED = ("mixtral:tiny",)
"""Families whose floating point operations depend on the tokens."""


def rows() -> Iterator[Row]:
    for names, num_plans, nightly in ((SOME, 7, False), (TINY, NUM_PLANS, True)):
        what = f"{len(names)} families x {num_plans} random plans"
        command = COMMAND + (" --nightly" if nightly else "")
        yield Row(
            f"{what} (data, tensor, pipeline, sharded optimizer): worst relative error of losses "
            "and gradients, fp64, two steps",
            "<= 1e-9",
            command,
            lambda names=names, num_plans=num_plans: _numerics(names, num_plans),
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


def _numerics(names: tuple[str, ...], num_plans: int) -> Measured:
    worst, num_runs = 0.0, 0
    for name in names:
        case = family_case(name)
        steps = [[case.batch(2 * at), case.batch(2 * at + 1)] for at in range(2)]
        state = case.state
        alone = run_alone(case.module, case.call, steps)
        for seed in range(num_plans):
            for run in run_plan(case, seed, state, steps):
                worst = max(worst, _error(run, alone))
            num_runs += 1
    return Measured(f"{worst:.1e} over {num_runs} plans", worst <= 1e-9)


def _error(run: Run, alone: Run) -> float:
    """Of losses and gradients; gradients that vanish are measured by the largest."""
    pairs = zip(run.losses, alone.losses, strict=True)
    errors = [abs(got - want) / abs(want) for got, want in pairs]
    largest = max(float(one.abs().max()) for one in alone.gradients.values())
    for name, want in alone.gradients.items():
        scale = max(float(want.abs().max()), 1e-2 * largest)
        errors.append(float((run.gradients[name] - want).abs().max()) / scale)
    return max(errors)


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
