"""Replayed rows of Alpa: what was run, how a worker spends its time, how rows can be ranked."""

import itertools
from collections.abc import Callable

import pytest

from benches.alpa_bounds import even_bounds, stage_bounds
from benches.alpa_ceiling import ceiling, far_pairs, pairs_right, published
from benches.alpa_choices import allowed_of, dim_factors
from benches.alpa_convolutions import convolution_flops
from benches.alpa_models import graph_of
from benches.alpa_older import older_runs
from benches.alpa_one_node import ONE_NODE_MODELS, one_node_runs
from benches.alpa_paper import Family, Model, models
from benches.alpa_runs import Run, runs
from benches.alpa_step import in_turn
from blocks.sharding import Mesh, OpGraph, Replicate, strategies
from recipes.plan.layers.chain import LayerChain
from recipes.plan.prediction import StagePrediction
from recipes.plan.search.step_time import step_time
from recipes.plan.stage_plan import Boundary, StagePlan

TINY = Model("gpt", "tiny", 4, 64, 2, 4, seq_len=16, vocab_size=96)
FAMILIES: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")


@pytest.fixture(scope="module")
def tiny() -> OpGraph:
    return graph_of(TINY, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_use_the_devices_they_say(family: Family) -> None:
    for run in (*runs(family), *one_node_runs(family)):
        devices = sum(first * second for first, second in run.meshes)
        by_hand = family == "wide_resnet" and run.method == "inter"
        assert devices == run.model.num_gpus or by_hand, run
        assert not run.shares or len(run.shares) == len(run.meshes)
        assert not run.forced or len(run.forced) == len(run.meshes)
        if run.recompute == "blocks" and run.shares:
            assert sum(run.shares) == run.model.num_layers


def test_marked_stages_have_as_many_blocks_and_the_head_beside_the_last(tiny: OpGraph) -> None:
    chain = LayerChain.of(tiny)
    assert chain.num_layers == TINY.num_layers + 2
    run = Run(TINY, "inter", None, (1,), ((1, 1),) * 2, (1, 1))
    assert stage_bounds(run, chain) == [0, 2, 4]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_even_bounds_have_the_least_largest_sum(stages: int) -> None:
    work = [3, 1, 4, 1, 5, 9, 2]

    def largest(bounds: tuple[int, ...]) -> int:
        return max(sum(work[a:b]) for a, b in itertools.pairwise(bounds))

    every = [
        (0, *inner, len(work)) for inner in itertools.combinations(range(1, len(work)), stages - 1)
    ]
    assert largest(tuple(even_bounds(work, stages))) == min(map(largest, every))


def test_sequences_are_not_cut_and_gradients_are_summed_at_the_end(tiny: OpGraph) -> None:
    mesh = Mesh.of(data=2, tensor=2)
    run = Run(TINY, "intra", None, (1,), ((2, 2),), forced=(True,))
    allowed = allowed_of(run, 0, tiny, mesh)
    batch, sequence = dim_factors(tiny, 0), dim_factors(tiny, 1)
    seen = {"op": 0, "accumulate": 0}
    for node in tiny.nodes:
        for strategy in strategies(node.rule, mesh):
            if not allowed(node, strategy):
                continue
            if node.role == "op" and node in batch:
                assert strategy.choices[0] == batch[node]
                assert sequence.get(node) not in strategy.choices[1:]
                seen["op"] += 1
            elif node.role == "accumulate":
                assert strategy.choices[0] < -1
                seen["accumulate"] += 1
    assert min(seen.values()) > 10


@pytest.mark.parametrize(
    ("model", "counted"),  # TFLOP of a step: seconds times TFLOP/s times GPUs, as published
    [
        (models("wide_resnet")[0], 43.98505 * 8.3738),
        (models("wide_resnet")[4], 77.78465 * 4.7175 * 16),
        (ONE_NODE_MODELS["wide_resnet"][0], 0.928243 * 8.266534),
        (ONE_NODE_MODELS["wide_resnet"][3], 0.937019 * 7.999638 * 8),
        (older_runs()[0].model, 3.111174 * 8.656475),
        (older_runs()[3].model, 3.373563 * 8.135634 * 8),
    ],
)
def test_flops_of_convolutions_are_those_that_were_published(model: Model, counted: float) -> None:
    found = model.global_batch * convolution_flops(model) / 1e12
    assert found == pytest.approx(counted, rel=2e-5)


def test_flops_of_convolutions_are_those_of_the_model_but_for_padding() -> None:
    model = Model("wide_resnet", "tiny", 1, 8, 50, width_factor=2, global_batch=2)
    found, traced = convolution_flops(model), graph_of(model, 2).flops() / 2
    assert 0.9 < found / traced < 1


def stages_of_two(seconds: float) -> tuple[list[StagePlan], list[Boundary]]:
    """Two stages of a second forward and two backward, and so much between them."""
    took = StagePrediction(1.0, 2.0, 0.0, 0.0, {}, 0.0, 0.0, 0.0, 0.0, 1, 0.0)
    meshes = [Mesh(("data",), (1,), (rank,)) for rank in range(2)]
    stages = [
        StagePlan(at, at + 1, mesh, False, ((at, at + 1, "A"),), took)
        for at, mesh in enumerate(meshes)
    ]
    whole = ((Replicate(),),) * 2
    ways = (("forward", 0, 1), ("backward", 1, 0))
    return stages, [Boundary("x", p, a, b, whole, 1, seconds) for p, a, b in ways]  # type: ignore


@pytest.mark.parametrize(("timed", "more"), [(in_turn, 3.5), (step_time, 3.0)])
def test_receiving_takes_a_worker_of_alpas_time_once_a_microbatch(
    timed: Callable[..., tuple[float, float]], more: float
) -> None:
    stages, crossing = stages_of_two(0.5)
    took = [timed(stages, crossing, "one_f_one_b", count)[0] for count in (1, 9, 10)]
    assert took[0] == pytest.approx(7.0)
    assert took[2] - took[1] == pytest.approx(more)


def test_a_predictor_that_knows_all_reaches_one_and_less_with_errors() -> None:
    values = published("gpt")
    assert ceiling(values, 0.0, draws=3) == (1.0, 1.0)
    medians = [ceiling(values, error, draws=60)[0] for error in (0.02, 0.08, 0.3)]
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] < 0.8


def test_pairs_that_are_close_do_not_count() -> None:
    assert far_pairs([10.0, 10.5, 12.0]) == [(0, 2), (1, 2)]
    assert pairs_right([1.0, 3.0, 2.0], [10.0, 10.5, 12.0]) == (1, 2)
