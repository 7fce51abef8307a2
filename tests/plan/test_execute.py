"""Planned steps against the module itself: loss, gradients, optimizer, traffic, work, memory."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from blocks.sharding import Mesh, run_local
from recipes.plan.execute import SGD, AdamW, FxOperations, PlannedModule
from recipes.plan.execute.optimizer import apply, new_state
from tests.plan.execute_cases import CASES, Case, ranker, transformer
from tests.plan.executing import (
    assert_as_counted,
    assert_same_run,
    random_program,
    run_alone,
    run_on_threads,
)

MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2))


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def test_any_strategies_train_as_one_device(case: Case) -> None:
    steps = [[case.batch(0), case.batch(1)], [case.batch(2)], [case.batch(3)]]  # two microbatches
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    case.module.load_state_dict(state)
    for seed, follow in enumerate((0.0, 0.8, 0.8)):
        program = random_program(case.traced, MESHES[seed], seed, follow=follow)
        for run in run_on_threads(case.traced, program, state, steps):
            assert_same_run(run, alone, tolerance=1e-9)


def test_float32() -> None:
    case = transformer(torch.float32)
    steps, state = [[case.batch(0)]], case.state
    alone = run_alone(case.module, case.call, steps)
    program = random_program(case.traced, MESHES[0], 11)
    for run in run_on_threads(case.traced, program, state, steps):
        assert_same_run(run, alone, tolerance=1e-5, state=False)


def test_traffic_work_and_memory_are_as_counted(case: Case) -> None:
    assert_as_counted(case, [(MESHES[1], 100), (MESHES[2], 101)])


def test_dropout_draws_the_same_under_every_plan() -> None:
    case = ranker(dropout=0.4)
    steps = [[case.batch(0), case.batch(1)]] * 2
    runs = [
        run_on_threads(case.traced, random_program(case.traced, mesh, seed), case.state, steps)[0]
        for seed, mesh in enumerate((Mesh.of(a=1), *MESHES))
    ]
    for run in runs[1:]:
        assert_same_run(run, runs[0], tolerance=1e-9)
    assert runs[0].losses[0] != run_alone(case.module.eval(), case.call, steps).losses[0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum"])
def test_optimizers_are_those_of_torch(name: str) -> None:
    ours, theirs = {
        "adamw": (AdamW(lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)),
        "sgd": (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        "momentum": (SGD(0.1, 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    }[name]
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(whole.clone())
    optimizer, state, mine = theirs([parameter]), new_state(ours, whole), whole.clone()
    for step in range(1, 4):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        apply(ours, mine, gradient, state, step)
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_narrow_parameters_keep_a_wide_copy() -> None:
    parameter = torch.ones(3, dtype=torch.bfloat16)
    state = new_state(SGD(lr=1e-4), parameter)
    for step in range(1, 101):  # each too small for bfloat16
        apply(SGD(lr=1e-4), parameter, torch.ones(3, dtype=torch.bfloat16), state, step)
    assert abs(state["master"][0].item() - 0.99) < 1e-5
    assert abs(parameter[0].item() - 0.99) < 4e-3


def test_what_is_missing_is_named() -> None:
    case = ranker()
    program = random_program(case.traced, Mesh.of(a=1), 0)

    def module(state: Mapping[str, Tensor]) -> PlannedModule:
        work = run_local(program.mesh, lambda rank, groups: groups)[0]
        return PlannedModule(program, FxOperations(case.traced.ops), 0, work, state)

    with pytest.raises(ValueError, match=r"state of .*: expected a tensor of that name"):
        module({})
    with pytest.raises(ValueError, match=r"a tensor 'args.0'"):
        module(case.state).accumulate({})
