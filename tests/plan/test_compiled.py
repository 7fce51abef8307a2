"""What a compiler keeps out of memory, and what that saves."""

import dataclasses

from blocks.sharding import Mesh, OpGraph, bundled_cluster, strategies
from blocks.sharding.intra_op.node_labels import touched_bytes
from blocks.sharding.rules import view_rule
from recipes.plan.layers.compiled import compiled
from tests.sharding.training_steps import Step

ROWS, WIDTH = 8, 16
ALL = ROWS * WIDTH * 4


def written() -> OpGraph:
    """Two layers; between them two elementwise operations, a view, and one more."""
    step = Step()
    x = step.input("x", ROWS, WIDTH)
    first, second = (step.parameter(name, WIDTH, WIDTH) for name in ("first", "second"))
    x = step.map("b", step.map("a", step.linear(x, first)))
    apart = (ROWS, 4, WIDTH // 4)
    seen = step.add(
        "aten.reshape.default", view_rule((ROWS, WIDTH), apart), (x,), apart, name="seen"
    )
    back = step.add(
        *("aten.reshape.default", view_rule(apart, (ROWS, WIDTH)), (step.map("c", seen),)),
        (ROWS, WIDTH),
        name="back",
    )
    step.output(step.linear(back, second))
    return step.graph()


def test_elementwise_operations_in_a_row_are_one_kernel() -> None:
    graph = compiled(written())
    storage = {
        graph.nodes[at].op: v.storage for v, at in zip(graph.values, graph.maker, strict=True)
    }
    assert (storage["a"], storage["b"], storage["c"]) == ("none", "none", "own")
    assert storage["linear"] == storage["input"] == storage["parameter"] == "own"
    named = {value.name: value.storage for value in graph.values}
    assert named["seen"] == "none", "a view of what is nowhere"
    assert named["back"] == "view"


def test_what_never_reaches_memory_is_not_paid_for() -> None:
    before, after = written(), compiled(written())
    mesh = Mesh.of(x=1)

    def moved(graph: OpGraph, op: str) -> int:
        node = next(node for node in graph.nodes if node.op == op)
        return touched_bytes(node, graph.values, strategies(node.rule, mesh)[0], mesh)

    assert [moved(before, op) for op in "abc"] == [2 * ALL] * 3
    assert [moved(after, op) for op in "abc"] == [ALL, 0, ALL], "read once, written once"
    assert OpGraph.from_json(after.to_json()) == after


def test_without_overlap_an_operation_takes_both_times() -> None:
    kind = bundled_cluster("p3.16xlarge").kinds[0]
    both = kind.flops_s(10**12, "float16"), kind.memory_s(10**9)
    assert not kind.overlaps
    assert kind.op_s(10**12, 10**9, "float16") == sum(both) + kind.launch_s
    hides = dataclasses.replace(kind, overlaps=True)
    assert hides.op_s(10**12, 10**9, "float16") == max(both) + kind.launch_s
    assert type(kind).from_json(kind.to_json()) == kind
