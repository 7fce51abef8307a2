"""The same job on threads and on forked processes; checkpoints that move between plans."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from blocks.pipeline.schedules import one_f_one_b
from blocks.sharding import Mesh
from recipes.plan.execute import (
    AdamW,
    FxOperations,
    PlannedJob,
    PlannedPipeline,
    checkpoint,
    on_forks,
    on_threads,
)
from tests.plan.execute_cases import Case, ranker
from tests.plan.executing import (
    Run,
    assert_same_run,
    joined,
    random_stages,
    run_alone,
    train_pipeline,
)

ONE, TWO = Mesh(("a",), (1,), (0,)), Mesh(("a",), (2,), (1, 2))
FOUR = Mesh(("a", "b"), (2, 2), (0, 1, 2, 3))


def job_of(case: Case, meshes: tuple[Mesh, ...], seed: int, state: dict[str, Tensor]) -> PlannedJob:
    stages = random_stages(case.traced, meshes, seed)
    schedule = one_f_one_b(len(meshes), (1,) * 2)
    operations = FxOperations(case.traced.ops)
    return PlannedJob(tuple(stages), schedule, operations, state, AdamW(lr=0.1))


def test_forked_ranks_train_as_threads_do_and_leave_a_checkpoint(tmp_path: Path) -> None:
    case = ranker()
    steps = [[case.batch(2 * at), case.batch(2 * at + 1)] for at in range(5)]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    job = job_of(case, (ONE, TWO), 5, state)
    threads = joined(on_threads(job, lambda pipeline: train_pipeline(pipeline, steps[:3])))

    def work(pipeline: PlannedPipeline, device_mesh: DeviceMesh) -> tuple[Run, Any]:
        run = train_pipeline(pipeline, steps[:3])
        checkpoint.save(pipeline, device_mesh, tmp_path / "first")
        entries = checkpoint.state_dict(pipeline, device_mesh)
        assert all(isinstance(entry, DTensor) for entry in entries.values())
        return run, {key: str(entry.placements) for key, entry in entries.items()}

    found = [result for result in on_forks(job, work) if result is not None]
    assert_same_run(joined([run for run, _ in found]), threads, tolerance=1e-9)
    assert threads.losses == [*threads.losses]
    assert any("Shard" in text for _, texts in found for text in texts.values())

    blank = {name: torch.zeros_like(one) for name, one in state.items()}
    other = job_of(case, (FOUR,), 6, blank)

    def go_on(pipeline: PlannedPipeline, device_mesh: DeviceMesh) -> Run:
        checkpoint.load(pipeline, device_mesh, tmp_path / "first")
        return train_pipeline(pipeline, steps[3:])

    def go_on_here(pipeline: PlannedPipeline) -> Run:
        checkpoint.load_whole(pipeline, tmp_path / "first")
        return train_pipeline(pipeline, steps[3:])

    for runs in (on_forks(other, go_on), on_threads(other, go_on_here)):
        run = joined([run for run in runs if run is not None])
        for got, want in zip(run.losses, alone.losses[3:], strict=True):
            assert abs(got - want) <= 1e-9 * want
        for name, want in alone.state.items():
            torch.testing.assert_close(run.state[name], want, rtol=1e-7, atol=1e-9)


def test_threads_write_what_another_plan_reads(tmp_path: Path) -> None:
    case = ranker()
    steps = [[case.batch(at), case.batch(at + 1)] for at in range(2)]
    job = job_of(case, (ONE, TWO), 2, case.state)

    def train(pipeline: PlannedPipeline) -> dict[str, Tensor]:
        train_pipeline(pipeline, steps)
        return checkpoint.whole_state(pipeline)

    states = on_threads(job, train)
    whole = {name: one for state in states for name, one in state.items()}
    checkpoint.save_whole(whole, tmp_path)
    blank = {name: torch.zeros_like(one) for name, one in case.state.items()}

    def read(pipeline: PlannedPipeline) -> dict[str, Tensor]:
        checkpoint.load_whole(pipeline, tmp_path)
        return checkpoint.whole_state(pipeline)

    lacking = {name: one for name, one in whole.items() if not name.endswith("mix.bias.exp_avg")}
    checkpoint.save_whole(lacking, tmp_path / "lacking")
    folders = {
        "lacking": "all of the plan's, got no optimizer.mix.bias.exp_avg, and 0 more missing",
        "nothing": "folder: expected a checkpoint of a planned run",
    }
    for name, words in folders.items():
        with pytest.raises(ValueError, match=words):
            on_threads(
                job_of(case, (Mesh.of(a=1),), 3, blank),
                lambda pipeline, name=name: checkpoint.load_whole(pipeline, tmp_path / name),
            )
    for state in on_threads(job_of(case, (FOUR,), 3, blank), read):
        assert set(state) == set(whole)
        for name, one in state.items():
            assert torch.equal(one, whole[name]), name
