"""Plans that are known: Alpa's closed forms, and the ways in which models are cut by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from blocks.sharding import (
    AlphaBeta,
    Mesh,
    OpGraph,
    OpNode,
    Placement,
    Replicate,
    Shard,
    Strategy,
    lower,
)
from blocks.sharding.cost import ALPA_TIES
from blocks.sharding.intra_op import IntraOpPlan, OutOfMemory, pose, price, solve
from blocks.sharding.program.traffic import traffic_of
from tests.sharding.training_steps import (
    attention_forward,
    conv_step,
    decoder_step,
    embedding_step,
    experts_step,
    mlp_step,
    turned_step,
    vocabulary_step,
)

S0, S1, R = Shard(0), Shard(1), Replicate()


def cost_of(mesh: Mesh, *beta: float) -> AlphaBeta:
    return AlphaBeta(mesh, (1,) * len(beta), beta, ALPA_TIES)


def once(mesh: Mesh) -> Callable[[OpNode, Strategy], bool]:
    """Every product is computed once: no rank does what another does too."""

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        cuts = zip(strategy.choices, mesh.sizes, strict=True)
        return not node.rule.flops_per_point or all(c >= 0 for c, size in cuts if size > 1)

    return allowed


def plan(graph: OpGraph, sizes: tuple[int, ...], *beta: float, **options) -> IntraOpPlan:
    mesh = Mesh(("a", "b")[: len(sizes)], sizes)
    cost = cost_of(mesh, *(beta or (1,) * len(sizes)))
    found = solve(graph, mesh, cost, **{"allowed": once(mesh), **options})
    assert found.gap < 1e-12, "proved to be best"
    return found


def all_reduce(num_bytes: float, num_ranks: int, beta: float = 1) -> float:
    return 1 + beta * 2 * (num_ranks - 1) / num_ranks * num_bytes + 0.01


def of_op(graph: OpGraph, found: IntraOpPlan, op: str) -> list[Strategy]:
    pairs = zip(graph.nodes, found.strategies, strict=True)
    return [strategy for node, strategy in pairs if node.op == op]


@pytest.mark.parametrize("sizes", [(4, 1), (1, 4)])
@pytest.mark.parametrize("num_layers", [2, 12])
def test_mlp_data_parallel(num_layers, sizes):
    """An all-reduce of each weight's gradient."""
    graph = mlp_step(num_layers, batch=1024, hidden=128)
    found = plan(graph, sizes)
    assert found.counts == {"all_reduce": num_layers}
    assert found.objective_s == pytest.approx(num_layers * all_reduce(128 * 128 * 4, 4), rel=1e-12)
    axis = sizes.index(4)
    assert {s.inputs[0][axis] for s in of_op(graph, found, "linear")} == {S0}


@pytest.mark.parametrize("sizes", [(4, 1), (1, 4)])
@pytest.mark.parametrize("num_layers", [2, 12])
def test_mlp_model_parallel(num_layers, sizes):
    """An all-reduce of the activations after every second layer, forward and backward; weights cut
    by columns and by rows in turn."""
    graph = mlp_step(num_layers, batch=128, hidden=1024)
    found = plan(graph, sizes)
    assert found.counts == {"all_reduce": num_layers - 1}
    closed = (num_layers - 1) * all_reduce(128 * 1024 * 4, 4)
    assert found.objective_s == pytest.approx(closed, rel=1e-12)
    axis = sizes.index(4)
    weights = [found.placements(graph, f"w{layer}")[axis] for layer in range(num_layers)]
    assert weights == [S0, S1] * (num_layers // 2)


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4), (3, 4)])
@pytest.mark.parametrize("num_layers", [2, 12])
def test_mlp_on_two_axes(num_layers, sizes):
    """Batch along the slow axis, weights along the fast one; where gathering activations is worth
    it, which Alpa does not consider here, better than that."""
    graph = mlp_step(num_layers, batch=1024, hidden=128)
    slow, fast = sizes
    closed = num_layers * all_reduce(128 * 128 * 4 / fast, slow)
    closed += (num_layers - 1) * all_reduce(1024 * 128 * 4 / slow, fast, 0.01)
    found = plan(graph, sizes, 1, 0.01)
    assert found.objective_s <= closed * (1 + 1e-12)
    if found.counts.keys() == {"all_reduce"}:
        assert found.counts == {"all_reduce": 2 * num_layers - 1}
        assert found.objective_s == pytest.approx(closed, rel=1e-12)
    assert num_layers == 12 or sizes == (3, 4) or found.counts.keys() == {"all_reduce"}


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4)])
def test_forced_batch_on_both_axes(sizes):
    """All products cut along the batch on the slow axis: as many all-reduces as layers there."""
    mesh = Mesh(("a", "b"), sizes)
    computed_once = once(mesh)

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        batch = not node.rule.flops_per_point or strategy.choices[0] == node.rule.index("row")
        return batch and computed_once(node, strategy)

    graph = mlp_step(2, batch=128, hidden=1024)
    found = plan(graph, sizes, 1, 0.01, allowed=allowed)
    slow = [use for use in found.price.collectives if use.axis == "a"]
    assert [(use.collective, use.count) for use in slow] == [("all_reduce", 2)]
    closed = 2 * all_reduce(1024 * 1024 * 4 / sizes[1], sizes[0])
    closed += all_reduce(128 * 1024 * 4 / sizes[0], sizes[1], 0.01)
    assert found.objective_s == pytest.approx(closed, rel=1e-12)


def megatron(axes: tuple[Placement, ...]) -> dict[str, tuple[Placement, ...]]:
    """Where weights are to be cut along the last axis: by heads, and by rows after them."""
    before = axes[:-1]
    return dict.fromkeys(("wq", "wk", "wv"), (*before, S0)) | {"wo": (*before, S1)}


@pytest.mark.parametrize(("hidden", "sizes"), [(512, (4,)), (2048, (4, 4))])
def test_attention_forward(hidden, sizes):
    """Heads stay where their projections are: one all-reduce of the output."""
    graph = attention_forward(batch=4, length=128, hidden=hidden, heads=16)
    outer = (S0,) * (len(sizes) - 1)
    pins = megatron((R,) * len(sizes)) | {graph.nodes[-1].name: (*outer, R)}
    pins |= {"x": (*outer, R)}
    found = plan(graph, sizes, pins=pins)
    share = 4 * 128 * hidden * 4 / (4 if len(sizes) > 1 else 1)
    assert found.counts == {"all_reduce": 1}
    assert found.objective_s == pytest.approx(all_reduce(share, 4), rel=1e-12)
    assert of_op(graph, found, "attention")[0].outputs[0] == (*outer, S1)


def test_turning_and_reshaping_cost_nothing():
    straight = plan(mlp_step(2, batch=128, hidden=2048), (4,))
    turned = plan(turned_step(128, 2048), (4,))
    assert turned.objective_s == straight.objective_s
    assert turned.counts == straight.counts == {"all_reduce": 1}


def test_memory_that_binds_brings_zero():
    """One weight on four ranks, whose whole gradient is reduced as long as there is room."""
    graph = mlp_step(1, batch=1024, hidden=128, input_gradient=True)
    free = plan(graph, (4,))
    weight = 128 * 128 * 4
    assert free.counts == {"all_reduce": 1}
    # Gradient and optimizer state cut in four: a reduce-scatter, and the new weight gathered.
    acts = 3 * 1024 * 128 * 4 / 4  # x, target and output, cut in four
    cap = acts + weight * (1 + 1 / 4 + 2 / 4)
    second = plan(graph, (4,), memory_cap=cap)
    assert second.memory_bytes == cap
    assert second.counts == {"reduce_scatter": 1, "all_gather": 1}
    assert second.placements(graph, "w0") == (R,)
    # The weight cut too: gathered for the forward pass and for the backward pass.
    cap = acts + weight * (1 / 4 + 1 / 4 + 2 / 4)
    third = plan(graph, (4,), memory_cap=cap)
    assert third.memory_bytes == cap
    assert third.counts == {"reduce_scatter": 1, "all_gather": 2}
    assert third.placements(graph, "w0") == (S0,) or third.placements(graph, "w0") == (S1,)
    assert free.objective_s < second.objective_s < third.objective_s
    with pytest.raises(OutOfMemory):
        plan(graph, (4,), memory_cap=acts / 2)


def test_gradients_add_up_before_they_are_reduced():
    """With many microbatches they stay addends until the step ends, unless memory forbids it."""
    graph = mlp_step(2, batch=1024, hidden=128)
    every, once_a_step = plan(graph, (4,)), plan(graph, (4,), num_microbatches=8)
    assert {use.phase for use in every.price.collectives} == {"backward"}
    assert {use.phase for use in once_a_step.price.collectives} == {"update"}
    assert once_a_step.price.backward_s == 0
    assert once_a_step.objective_s == pytest.approx(every.objective_s / 8, rel=1e-12)
    cap = once_a_step.memory_bytes - 128 * 128 * 4  # no room for both whole gradients and moments
    tight = plan(graph, (4,), num_microbatches=8, memory_cap=cap)
    assert tight.memory_bytes <= cap
    assert tight.objective_s >= once_a_step.objective_s


def test_decoder_block_by_columns_and_rows():
    """Long weights, few tokens: projections by heads, the one after them by rows, and again."""
    graph = decoder_step(batch=1, length=128, hidden=512, heads=8)
    found = plan(graph, (4,))
    cut = {name: found.placements(graph, name)[0] for name in ("wq", "wk", "wv", "wo")}
    assert cut == {"wq": S0, "wk": S0, "wv": S0, "wo": S1}
    assert found.placements(graph, "up") == (S0,)
    assert found.placements(graph, "down") == (S1,)
    assert of_op(graph, found, "attention")[0].outputs[0] == (S1,), "by heads"
    assert found.counts == {"all_reduce": 3, "reduce_scatter": 1}, "the last may leave in runs"


def test_decoder_block_with_many_tokens_is_data_parallel():
    graph = decoder_step(batch=64, length=128, hidden=64, heads=8)
    found = plan(graph, (4,), num_microbatches=4)
    assert {s.choices for s in of_op(graph, found, "linear")} == {(0,)}, "the batch"
    assert {use.phase for use in found.price.collectives} == {"update"}


def test_loss_is_cut_along_the_vocabulary():
    graph = vocabulary_step(tokens=64, hidden=32, vocab=4096)
    found = plan(graph, (4,))
    assert found.placements(graph, "head") == (S0,)
    assert of_op(graph, found, "linear")[0].outputs[0] == (S1,)
    assert of_op(graph, found, "gather")[0].inputs[0] == (S1,)
    most = max(use.sent_bytes / use.count for use in found.price.collectives)
    assert most <= 2 * 64 * 32 * 4, "nothing as long as the vocabulary is sent"


def test_small_conv_nets_cut_the_batch_and_wide_late_ones_the_channels():
    early, late = conv_step(64, 8, 32), conv_step(8, 512, 4)
    by_batch, by_channel = plan(early, (4,)), plan(late, (4,))
    assert {s.inputs[0] for s in of_op(early, by_batch, "conv")} == {(S0,)}
    assert by_batch.counts == {"all_reduce": 3}
    assert all(s.inputs[1] != (R,) for s in of_op(late, by_channel, "conv"))


def test_experts_go_to_ranks():
    graph = experts_step(groups=4, tokens=64, experts=8, slots=16, channels=64)
    found = plan(graph, (4,))
    assert found.placements(graph, "up") == (S0,)
    assert found.placements(graph, "down") == (S0,)
    weights = [
        s for s in of_op(graph, found, "einsum") if len(s.inputs[1]) and s.outputs[0] == (S0,)
    ]
    assert len(weights) >= 6, "products of the experts are where the expert is"


def test_tied_table_is_cut_along_the_vocabulary():
    graph = embedding_step(tokens=64, vocab=4096, hidden=64, tied=True)
    found = plan(graph, (4,))
    assert found.placements(graph, "table") == (S0,)
    assert of_op(graph, found, "embedding")[0].inputs[0] == (S0,)
    assert of_op(graph, found, "linear")[0].inputs[1] == (S0,)


UNEVEN = conv_step(4, 8, 4)
GRAPHS = [
    mlp_step(2, 16, 8), decoder_step(4, 8, 16, 4), vocabulary_step(8, 4, 16), UNEVEN,
    experts_step(4, 8, 4, 4, 8), turned_step(8, 16), embedding_step(8, 16, 4, tied=True),
]  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("mesh", [Mesh.of(a=4), Mesh.of(a=2, b=2)], ids=str)
def test_priced_bytes_are_those_of_the_program(graph, mesh):
    """What the planner says is sent is what the lowered program sends, of any strategies."""
    cost = cost_of(mesh, *([1] * len(mesh.sizes)))
    posed = pose(graph, mesh, cost)
    rng = np.random.default_rng(0)
    for _ in range(2):
        labels = [int(rng.integers(len(node.strategies))) for node in posed.labels]
        chosen = posed.strategies(labels)
        total = price(graph, chosen, mesh, cost)
        program = lower(graph, chosen, mesh)
        said = {(u.phase, u.collective, u.axis): u[3:] for u in total.collectives}
        sent = {
            (phase, t[1], t[2]): t[3:]
            for phase in ("forward", "backward", "update")
            for t in traffic_of(program, phase, 0)
        }
        if graph is UNEVEN:  # kernels of three: parts are priced padded to the longest
            assert said.keys() == sent.keys()
            assert all(said[key][0] == sent[key][0] for key in said)
            assert all(said[key][1] >= sent[key][1] for key in said)
        else:
            assert said == sent
