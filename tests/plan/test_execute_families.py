"""Ten families under plans that mix data, tensor, pipeline and optimizer parallelism."""

import random

import pytest

from blocks.pipeline.schedules import gpipe, one_f_one_b, zb_h1
from blocks.sharding import Mesh
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

NUM_PLANS = 30
SHAPES = (
    ({"a": 2},),
    ({"a": 3},),
    ({"a": 2, "b": 2},),
    ({"a": 4},),
    ({"a": 1}, {"a": 2}),
    ({"a": 2}, {"a": 2, "b": 2}),
    ({"a": 2}, {"a": 1}, {"a": 3}),
)
"""Meshes of the stages, which plans go through in turn."""


def meshes_of(shape: tuple[dict[str, int], ...]) -> list[Mesh]:
    """Meshes of devices counted from 0, stage after stage."""
    found: list[Mesh] = []
    for sizes in shape:
        mesh = Mesh.of(**sizes)
        first = sum(before.num_ranks for before in found)
        ranks = tuple(first + rank for rank in mesh.ranks)
        found.append(Mesh(mesh.axes, mesh.sizes, ranks))
    return found


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
@pytest.mark.parametrize("name", TINY)
def test_every_family_trains_as_one_device(name: str) -> None:
    case = family_case(name)
    steps = [[case.batch(2 * at), case.batch(2 * at + 1)] for at in range(3)]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    for seed in range(NUM_PLANS):
        for run in run_plan(case, seed, state, steps):
            assert_same_run(run, alone, tolerance=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2:tiny", "unet:tiny", "decoder:tiny"])
def test_a_few_families_and_plans(name: str) -> None:
    case = family_case(name)
    steps = [[case.batch(0), case.batch(1)]]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    for seed in (2, 5):
        for run in run_plan(case, seed, state, steps):
            assert_same_run(run, alone, tolerance=1e-9)
