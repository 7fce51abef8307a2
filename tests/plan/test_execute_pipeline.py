"""Pipelines of planned stages on meshes of different sizes, against the module itself."""

import dataclasses

import pytest
import torch

from blocks.pipeline.schedules import eager_1f1b, gpipe, interleaved, one_f_one_b, zb_h1
from blocks.sharding import Mesh
from recipes.plan.execute import meshes_of, routes
from recipes.plan.execute.routes import Way
from tests.plan.execute_cases import conv_net, ranker, tied_unet, transformer
from tests.plan.executing import (
    assert_same_run,
    pipeline_on_threads,
    random_stages,
    run_alone,
)

ONE, TWO, FOUR = (
    Mesh(("a",), (1,), (0,)),
    Mesh(("a",), (2,), (1, 2)),
    Mesh(("a", "b"), (2, 2), (3, 4, 5, 6)),
)
THREE = Mesh(("a",), (3,), (7, 8, 9))


@pytest.mark.parametrize(
    ("make", "meshes", "schedule"),
    [
        (transformer, (ONE, TWO, FOUR), one_f_one_b),
        (ranker, (TWO, ONE, THREE), eager_1f1b),
        (conv_net, (THREE, ONE, TWO), gpipe),
        (ranker, (TWO, THREE), zb_h1),
    ],
)
def test_uneven_stages_train_as_one_device(make, meshes, schedule) -> None:
    case = make()
    steps = [[case.batch(at) for at in range(4)], [case.batch(at) for at in range(4, 8)]]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    stages = random_stages(case.traced, meshes, seed=5)
    run = pipeline_on_threads(case.traced, stages, schedule(len(meshes), (1,) * 4), state, steps)
    assert_same_run(run, alone, tolerance=1e-9)


def test_interleaved_stages_recompute_and_gather_after_arrival() -> None:
    case = transformer()
    steps = [[case.batch(at) for at in range(4)]]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    meshes = (TWO, FOUR, TWO, FOUR)  # each rank of the pipeline has two stages
    stages = random_stages(case.traced, meshes, seed=9)
    schedule = interleaved(2, (1,) * 4, num_chunks=2)
    run = pipeline_on_threads(
        case.traced, stages, schedule, state, steps, recompute=(0, 2), mode="all_gather"
    )
    assert_same_run(run, alone, tolerance=1e-9)


@pytest.mark.parametrize(
    ("make", "meshes", "seed"),
    [
        (ranker, (ONE, TWO, FOUR), 2),
        pytest.param(transformer, (TWO, FOUR, THREE), 0, marks=pytest.mark.nightly),
    ],
)
def test_parts_that_are_passed_on_arrive_bit_for_bit(make, meshes, seed: int) -> None:
    case = make()
    steps = [[case.batch(at) for at in range(4)]] * 2
    state = case.state
    stages = random_stages(case.traced, meshes, seed=seed, follow=0.5)
    schedule = one_f_one_b(len(meshes), (1,) * 4)
    found = {}
    for mode in ("send_recv", "all_gather", "broadcast"):
        relayed = [
            transfer
            for every in routes(stages, 4, mode=mode).cargo.values()
            for cargo in every
            for transfer in cargo.plan.transfers
            if transfer.relayed
        ]
        assert bool(relayed) == (mode != "send_recv")
        if mode == "broadcast":  # a rank in the middle of a chain passes on what was passed on
            targets = {(t.box, t.target) for t in relayed}
            assert any((t.box, t.source) in targets for t in relayed)
        found[mode] = pipeline_on_threads(case.traced, stages, schedule, state, steps, mode=mode)
    for mode in ("all_gather", "broadcast"):
        assert found[mode].losses == found["send_recv"].losses
        for name, tensor in found["send_recv"].state.items():
            assert torch.equal(found[mode].state[name], tensor), f"{mode}: {name}"


def test_skips_over_stages_and_tied_weights() -> None:
    case = tied_unet()
    steps = [[case.batch(at) for at in range(3)]] * 2
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    stages = random_stages(case.traced, (ONE, TWO, THREE), seed=3)
    ways = routes(stages, 3)
    assert (0, 2) in ways.edges
    run = pipeline_on_threads(case.traced, stages, one_f_one_b(3, (1,) * 3), state, steps)
    assert_same_run(run, alone, tolerance=1e-9)


@pytest.mark.parametrize(
    ("schedule", "recompute"),
    [(gpipe, ()), (one_f_one_b, (0, 1, 2)), (eager_1f1b, (1,)), (zb_h1, ())],
)
def test_tied_weights_go_once_a_step(schedule, recompute: tuple[int, ...]) -> None:
    case = tied_unet()
    steps = [[case.batch(at + 4 * step) for at in range(4)] for step in range(2)]
    stages = random_stages(case.traced, (TWO, ONE, FOUR), seed=7)
    ways = routes(stages, 4)
    trips: tuple[tuple[Way, tuple[int, int], int], ...]
    trips = (("forward", (0, 2), 0), ("backward", (2, 0), 3))
    for way, ends, only in trips:
        shapes = [[cargo.plan.shape for cargo in ways.of(way, *ends, at)] for at in range(4)]
        assert [found.count((8, 8)) for found in shapes] == [int(at == only) for at in range(4)]
    state = case.state
    program = schedule(3, (1,) * 4)
    run = pipeline_on_threads(case.traced, stages, program, state, steps, recompute=recompute)
    assert_same_run(run, run_alone(case.module, case.call, steps), tolerance=1e-9)


def test_microbatches_out_of_order_are_refused() -> None:
    case = ranker()
    stages = random_stages(case.traced, (ONE, TWO), seed=1)
    schedule = gpipe(2, (1, 1))
    turned = dataclasses.replace(
        schedule, programs=tuple((p[1], p[0], *p[2:]) for p in schedule.programs)
    )
    with pytest.raises(ValueError, match=r"microbatch of F0\(0,0\): expected from 1 on"):
        pipeline_on_threads(case.traced, stages, turned, case.state, [])


def test_schedules_of_other_stages_are_refused() -> None:
    case = ranker()
    stages = random_stages(case.traced, (ONE, TWO), seed=1)
    with pytest.raises(ValueError, match="stages of the schedule: expected 2, got 3"):
        meshes_of(stages, one_f_one_b(3, (1,)))
    with pytest.raises(ValueError, match="meshes of rank 0"):
        meshes_of(stages, interleaved(1, (1,), num_chunks=2))
    stages = random_stages(case.traced, (ONE, ONE), seed=1)
    with pytest.raises(ValueError, match="devices: expected each in one mesh"):
        meshes_of(stages, one_f_one_b(2, (1,)))
