"""The families under plans that mix data, tensor, pipeline and optimizer parallelism."""

import random
from pathlib import Path

import pytest

from blocks.pipeline.schedules import gpipe, one_f_one_b, zb_h1
from tests.plan.execute_cases import Case
from tests.plan.executing import (
    Run,
    assert_same_run,
    pipeline_on_threads,
    random_program,
    random_stages,
    run_alone,
    run_on_threads,
)
from tests.plan.family_cases import TINY, family_case
from tests.plan.trials import PRECISIONS, SHAPES, meshes_of, trials

NUM_PLANS = 30


def run_plan(case: Case, seed: int, state, steps) -> list[Run]:
    """The accounts of a plan's devices."""
    meshes = meshes_of(SHAPES[seed % len(SHAPES)])
    follow = (0.95, 0.8, 0.5)[seed % 3]
    if len(meshes) == 1:
        program = random_program(case.traced, meshes[0], seed, follow=follow)
        return run_on_threads(case.traced, program, state, steps)
    stages = random_stages(case.traced, meshes, seed, follow=follow)
    schedule = random.Random(seed).choice([gpipe, one_f_one_b, zb_h1])
    recompute = [at for at in range(len(meshes)) if random.Random(f"{seed}/{at}").random() < 0.3]
    made = schedule(len(meshes), (1,) * len(steps[0]))
    return [pipeline_on_threads(case.traced, stages, made, state, steps, recompute=recompute)]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", TINY)
def test_every_family_trains_as_one_device(name: str, dtype: str, tmp_path: Path) -> None:
    """Three steps, every gradient of each, and one more from another plan's checkpoint."""
    precision = PRECISIONS[dtype]
    case = family_case(name, dtype=precision.dtype)
    double = family_case(name) if dtype == "float32" else None
    errors = trials(case, range(NUM_PLANS), precision.optimizer, tmp_path, double=double)
    assert max(errors) <= precision.tolerance, errors


@pytest.mark.filterwarnings("ignore")
def test_a_plan_goes_on_from_anothers_checkpoint(tmp_path: Path) -> None:
    precision = PRECISIONS["float32"]
    case = family_case("mlp:tiny", dtype=precision.dtype)
    errors = trials(case, (2, 5), precision.optimizer, tmp_path, double=family_case("mlp:tiny"))
    assert max(errors) <= precision.tolerance, errors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["unet:tiny", "decoder:tiny"])
def test_a_few_families_and_plans(name: str) -> None:
    case = family_case(name)
    steps = [[case.batch(0), case.batch(1)]]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    for seed in (2, 5):
        for run in run_plan(case, seed, state, steps):
            assert_same_run(run, alone, tolerance=1e-9)
