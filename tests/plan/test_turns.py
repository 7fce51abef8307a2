"""Stages sought and solved in turns: what is asked again where the first answer does not do."""

import functools
import re

import pytest

from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.search import search, turns
from recipes.plan.search.turns import Searched
from tests.plan.searching import chain_of, cluster_of

NODES = 2


@functools.cache
def chain(rows: int) -> LayerChain:
    return chain_of(rows, num_layers=9)


@functools.cache
def over_slow_nodes(batch_size: int) -> Searched:
    config = PlanConfig(
        *("mlp", "p3.16xlarge", NODES, 4, batch_size),
        microbatch_choices=3,
        mesh_axes=1,
        workers=1,
    )
    return search(chain, cluster_of(NODES), config)


def test_one_stage_is_tried_where_several_lie_far_apart():
    """Messages of few bytes take longer than the network's rate says; two stages looked quicker."""
    plan = over_slow_nodes(256).plan
    assert plan.predicted.gap > 0.01
    assert len(plan.stages) == 1
    assert not any("stage, " in note or "stages, " in note for note in plan.notes)


def test_less_memory_is_never_said_to_be_quicker():
    """Though stages cost less as solved than as the tables had them when they were chosen."""
    found = over_slow_nodes(4096)
    assert len(found.plan.stages) > 1
    assert found.sought.makespan_s <= found.partition.best({"v100": 2**40}).makespan_s * 1.001
    (said,) = [note for note in found.plan.notes if note.startswith("with half the memory")]
    assert not re.search(r"step -", said), said


def test_stages_that_need_too_much_are_sought_with_less_until_others_come(
    monkeypatch: pytest.MonkeyPatch,
):
    """A twentieth less changes nothing where the stages hold far less than there is room for."""
    solve, refused = turns.solve_stages, []

    def picky(found, *others):
        if found.num_stages == 1:
            refused.append(found)
            raise ValueError("more than its layers")
        return solve(found, *others)

    monkeypatch.setattr(turns, "solve_stages", picky)
    config = PlanConfig(
        *("mlp", "p3.16xlarge", 1, 4, 4096),
        microbatch_choices=3,
        mesh_axes=1,
        memory_gib=0.1,
        workers=1,
    )
    said: list[str] = []
    plan = search(chain_of, cluster_of(), config, note=said.append).plan
    assert refused
    assert len(plan.stages) > 1
    shares = [float(share) for share in re.findall(r"again with (\d+)% of memory", "\n".join(said))]
    assert len(shares) > 1
    assert min(shares) < 90
