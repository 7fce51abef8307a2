"""``search``: a plan for a model on a cluster. Needs numpy, no torch.

Layers of the model -> strategies of a short chain of them on every mesh -> costs of every run of
layers -> stages, submeshes, schedule and microbatches -> strategies of the chosen stages -> plan.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.pins import check_pins, parse_pins
from recipes.plan.search.sensitivity import notes_of
from recipes.plan.search.stage_options import Note, OptionTables, option_tables
from recipes.plan.search.submesh_shapes import submesh_shapes
from recipes.plan.search.turns import LEAST, WHOLE, Searched, Turns

FAR = 0.01
"""Share of its bound by which a plan may be above it before it is sought on other terms."""

Chains = Callable[[int], LayerChain]
"""From the rows of a microbatch to the layers of the model."""


def search(
    chains: Chains, cluster: Cluster, config: PlanConfig, *, note: Note = lambda text: None
) -> Searched:
    """Stages, meshes, placements, schedule, microbatches and recomputation, chosen together.

    Args:
        note: told how far it is.

    Raises:
        ValueError: the model does not fit; says what is short, where and by how much.
    """
    clock = time.perf_counter()

    def say(text: str) -> None:
        note(f"{time.perf_counter() - clock:6.1f} s  {text}")

    counts = config.microbatches()
    by_count = {count: chains(config.batch_size // count) for count in counts}
    layers = by_count[counts[0]]
    check_pins(parse_pins(config.pins), layers)
    say(f"{layers.num_layers} layers of {len(set(layers.kinds))} kinds; microbatches {counts}")
    shapes = submesh_shapes(cluster, config, layers.num_layers)
    tables = option_tables(by_count, cluster, shapes, config, say)
    best = _in_turns(by_count, tables, cluster, config, say)
    plan = dataclasses.replace(best.plan, notes=notes_of(best, cluster, config))
    say(f"step {plan.predicted.step_s * 1e3:.1f} ms, {plan.predicted.gap:+.1%} of its bound")
    return dataclasses.replace(best, plan=plan)


def _in_turns(
    chains: Mapping[int, LayerChain],
    tables: OptionTables,
    cluster: Cluster,
    config: PlanConfig,
    say: Note,
) -> Searched:
    """The best of stages sought on several terms of what goes between them.

    What skips layers is first taken to go through the stages between, and then to take no time.
    Neighbours are taken to share a node where both have room on one. Where the plan that comes out
    does not lie so, and is far above its bound, stages are sought as if no two shared a node, and
    one stage is tried if it may take less than what goes between several.

    The bound is that of the terms under which nothing takes less than it does: no plan takes less
    by all costs seen, those of the plan's own stages included.
    """
    turns = Turns(chains, cluster, config, say, tables)
    turns.run(turns.terms)
    if turns.terms != LEAST and config.max_stages != 1:
        say("once more: what skips layers goes past the stages between")
        turns.run(LEAST)
    gap = turns.best.plan.predicted.step_s / turns.bounded().bound_s - 1
    if gap > FAR and turns.best.inter_op.num_stages > 1 and len(cluster.nodes) > 1:
        say(f"{gap:+.1%} of its bound; once more: no two stages on a node")
        turns.run(turns.terms._replace(apart=True))
    if gap > FAR and turns.best.inter_op.num_stages > 1 and turns.is_quicker(WHOLE):
        say("once more: all devices as one stage")
        turns.run(WHOLE)
    return turns.answer(turns.bounded())
