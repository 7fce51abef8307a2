"""Traced steps with layers repeated, executed: the same numbers, less held."""

import dataclasses

import pytest

from blocks.sharding import Mesh, count, lower, repeat_forward, strategies
from recipes.plan.layers.layers_of import layers_of
from tests.plan.execute_cases import conv_net, ranker, transformer
from tests.plan.executing import assert_same_run, random_program, run_alone, run_on_threads


@pytest.mark.parametrize("make", [transformer, conv_net, lambda: ranker(dropout=0.0)])
def test_repeated_layers_change_no_number(make):
    case = make()
    steps = [[case.batch(0), case.batch(1)], [case.batch(2)]]
    state = case.state
    alone = run_alone(case.module, case.call, steps)
    layer_of = layers_of(case.traced.graph)
    for seed, layers in enumerate((set(layer_of), {max(layer_of)})):
        graph = repeat_forward(case.traced.graph, layer_of, layers).graph
        traced = dataclasses.replace(case.traced, graph=graph)
        program = random_program(traced, Mesh.of(a=2), seed)
        for run in run_on_threads(traced, program, state, steps):
            assert_same_run(run, alone, tolerance=1e-9)


def test_dropout_draws_the_same_numbers_again():
    case = ranker(dropout=0.4)
    steps = [[case.batch(0)], [case.batch(1)]]
    graph = repeat_forward(case.traced.graph, layers_of(case.traced.graph), {0, 1, 2}).graph
    again = dataclasses.replace(case.traced, graph=graph)
    mesh, runs = Mesh.of(a=2), []
    for traced in (case.traced, again):
        plain = [strategies(node.rule, mesh)[0] for node in traced.graph.nodes]
        runs.append(run_on_threads(traced, lower(traced.graph, plain, mesh), case.state, steps)[0])
    assert_same_run(runs[1], runs[0], tolerance=1e-12)
    assert any("dropout" in node.name for node in graph.nodes if node.phase == "backward")


def test_less_is_saved():
    graph, mesh = transformer().traced.graph, Mesh.of(a=1)
    layer_of = layers_of(graph)
    repeated = repeat_forward(graph, layer_of, set(layer_of)).graph
    saved = [
        count(lower(g, [strategies(node.rule, mesh)[0] for node in g.nodes], mesh), 0).saved_bytes
        for g in (graph, repeated)
    ]
    assert saved[1] < 0.5 * saved[0]
