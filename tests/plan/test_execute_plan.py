"""Plans as the planner writes them, carried out: from the file to the single device's losses."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.plan.execute.run_plan import How, run_plan
from recipes.plan.parallel_plan import ParallelPlan
from tests.plan.family_cases import TINY

ROOT = Path(__file__).parents[2]


def planned(name: str, path: Path, *settings: str) -> ParallelPlan:
    """The planner's choice for four devices, in a process of its own."""
    fixed = ["num_devices=4", "batch_size=8", "dtype=float32", "workers=1", *settings]
    command = [sys.executable, "-m", "recipes.plan", name, "--cluster", "8xH100", *fixed]
    subprocess.run([*command, "--out", str(path)], check=True, capture_output=True, cwd=ROOT)
    return ParallelPlan.read(path)


def check_plan(plan: ParallelPlan, how: How = "threads") -> None:
    """Three steps of the plan against three of the model."""
    said: list[str] = []
    losses = run_plan(plan, num_steps=3, how=how, say=said.append, compare=True)
    alone = [float(text) for text in said[-1].removeprefix("one device: ").split(";")[0].split(",")]
    assert len(losses) == len(alone) == 3
    for at, (got, want) in enumerate(zip(losses, alone, strict=True)):
        limit = 1e-5 if at == 0 else 1e-2  # AdamW makes steps of rounding where gradients vanish
        assert abs(got - want) <= limit * abs(want), said


@pytest.mark.filterwarnings("ignore")
def test_a_plan_from_file_to_losses(tmp_path: Path) -> None:
    plan = planned("mlp:tiny", tmp_path / "plan.json", "max_stage_devices=2")
    assert len(plan.stages) > 1
    check_plan(plan)


@pytest.mark.filterwarnings("ignore")
def test_forwards_that_come_early_run_on_processes(tmp_path: Path) -> None:
    early = ("max_stage_devices=1", "num_microbatches=4", "schedules=eager_1f1b")
    plan = planned("mlp:tiny", tmp_path / "plan.json", *early)
    assert plan.schedule == "eager_1f1b"
    assert [stage.predicted.in_flight for stage in plan.stages] == [4, 4, 3, 1]
    check_plan(plan, "forks")


@pytest.mark.filterwarnings("ignore")
def test_microbatches_of_one_row_run_as_planned(tmp_path: Path) -> None:
    plan = planned("gpt2:tiny", tmp_path / "plan.json", "max_stages=2", "num_microbatches=8")
    assert plan.num_microbatches == 8
    check_plan(plan)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TINY)
def test_the_planners_choice_for_every_family(name: str, tmp_path: Path) -> None:
    for at, setting in enumerate(("max_stages=1", "max_stage_devices=2", "recompute=True")):
        check_plan(planned(name, tmp_path / f"{at}.json", setting))
