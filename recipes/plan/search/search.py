"""``search``: a plan for a model on a cluster. Needs numpy, no torch.

Layers of the model -> strategies of a short chain of them on every mesh -> costs of every run of
layers -> stages, submeshes, schedule and microbatches -> strategies of the chosen stages -> plan.
"""

import dataclasses
import textwrap
import time
from collections.abc import Callable, Mapping

from blocks.pipeline.inter_op import DoesNotFit, InterOpPlan
from blocks.sharding import Cluster, Mesh
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.pins import check_pins, parse_pins
from recipes.plan.prediction import Prediction
from recipes.plan.search.boundaries import boundaries
from recipes.plan.search.no_plan import no_plan
from recipes.plan.search.partition import Partition, memory_bytes
from recipes.plan.search.patterns import patterns_of
from recipes.plan.search.sensitivity import notes_of
from recipes.plan.search.solved_option import with_solved
from recipes.plan.search.stage_options import Note, OptionTables, option_tables
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.search.stage_work import solve_stages
from recipes.plan.search.step_time import step_time
from recipes.plan.search.submesh_shapes import submesh_shapes
from recipes.plan.search.transfers import has_skips, transfer_of
from recipes.plan.stage_plan import Boundary, StagePlan

HAIR = 1e-9
"""Sums of another order differ by less."""

TURNS = 3
"""Times that stages are solved, at most."""

Chains = Callable[[int], LayerChain]
"""From the rows of a microbatch to the layers of the model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """A plan and what it was chosen from, to be asked further questions.

    plan: the answer.
    chain: layers of the model, for the plan's rows of a microbatch.
    inter_op: stages as the tables had them.
    tables: costs of layers.
    solutions: of the stages.
    """

    plan: ParallelPlan
    chain: LayerChain
    inter_op: InterOpPlan
    tables: OptionTables
    solutions: tuple[StageSolution, ...]


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
    known: dict[object, StageSolution] = {}
    best = _in_turns(by_count, tables, cluster, config, say, known)
    if config.max_stages != 1 and has_skips(best.chain):
        best = _past_skips(best, by_count, cluster, config, say, known)
    plan, found = best.plan, best.inter_op
    partition = Partition(best.tables, cluster, config)
    plan = dataclasses.replace(plan, notes=notes_of(plan, partition, found, cluster, config))
    say(f"step {plan.predicted.step_s * 1e3:.1f} ms, {plan.predicted.gap:+.1%} of its bound")
    return dataclasses.replace(best, plan=plan)


def _in_turns(
    chains: Mapping[int, LayerChain],
    tables: OptionTables,
    cluster: Cluster,
    config: PlanConfig,
    say: Note,
    known: dict[object, StageSolution],
) -> Searched:
    """Stages are sought by what layers cost, and solved; what they cost as solved is a further way
    to run layers, and stages are sought again, until they stay as they are.

    The bound is the last one: no plan takes less by all costs seen, those of its own stages
    included.

    Args:
        known: stages that were solved before; those solved now are added.
    """
    caps = memory_bytes(cluster, config)
    try:
        found = Partition(tables, cluster, config).best(caps)
    except DoesNotFit as error:
        raise no_plan(error, cluster, config) from error
    best: Searched | None = None
    for _ in range(TURNS):
        stages, parts = found.num_stages, found.num_microbatches
        counted = f"{stages} stage{'s' * (stages > 1)}, {parts} microbatch{'es' * (parts > 1)}"
        say(f"{counted}, {found.schedule}")
        chain = chains[found.num_microbatches]
        try:
            solutions = solve_stages(found, chain, tables, cluster, config, say, known)
        except ValueError:
            if best is None:
                raise
            break  # it needs more than its layers did; the plan before stays
        plan = _assemble(found, chain, cluster, config, solutions)
        if best is None or plan.predicted.step_s < best.plan.predicted.step_s:
            best = Searched(plan, chain, found, tables, solutions)
        tables = with_solved(tables, found, chain, solutions)
        again = Partition(tables, cluster, config).best(caps, every_cut=True)
        if _stages(again, tables) == _stages(found, tables):
            break
        found = again
    assert best is not None, "at least one turn"
    same = _stages(again, tables) == _stages(best.inter_op, tables)
    inter_op = again if same else best.inter_op
    return _bounded(dataclasses.replace(best, inter_op=inter_op, tables=tables), again)


def _past_skips(
    best: Searched,
    chains: Mapping[int, LayerChain],
    cluster: Cluster,
    config: PlanConfig,
    say: Note,
    known: dict[object, StageSolution],
) -> Searched:
    """The better of a plan, whose stages were sought as if what skips stages went through them, and
    of one whose stages were sought as if that took no time, which is what the bound is for."""
    say("once more: what skips layers goes past the stages between")
    straight = {n: transfer_of(cluster, chain, skips=False) for n, chain in chains.items()}
    tables = best.tables.with_transfers(straight)
    try:
        other = _in_turns(chains, tables, cluster, config, say, known)
    except ValueError:  # its stages need more than their layers did
        caps = memory_bytes(cluster, config)
        return _bounded(best, Partition(tables, cluster, config).best(caps, every_cut=True))
    sooner = other.plan.predicted.step_s < best.plan.predicted.step_s
    return other if sooner else _bounded(best, other.inter_op)


def _bounded(best: Searched, found: InterOpPlan) -> Searched:
    """With the bound of what was found."""
    step_s, bound_s = best.plan.predicted.step_s, found.bound_s
    if bound_s * (1 - HAIR) <= step_s:  # the same additions in another order
        bound_s = min(bound_s, step_s)
    predicted = dataclasses.replace(best.plan.predicted, bound_s=bound_s)
    return dataclasses.replace(
        best,
        plan=dataclasses.replace(best.plan, predicted=predicted),
        inter_op=dataclasses.replace(best.inter_op, bound_s=bound_s, granularity=found.granularity),
    )


def _stages(plan: InterOpPlan, tables: OptionTables) -> object:
    """What decides how stages are solved: layers, submeshes, meshes, recomputation, schedule."""
    stages = []
    for stage in plan.stages:
        option = tables.option(plan.num_microbatches, stage.shape, stage.option)
        mesh = option.candidate.mesh
        stages.append((stage.first, stage.stop, stage.shape, mesh.sizes, option.recompute))
    return stages, plan.schedule, plan.num_microbatches


def _assemble(
    found: InterOpPlan,
    chain: LayerChain,
    cluster: Cluster,
    config: PlanConfig,
    solutions: tuple[StageSolution, ...],
) -> ParallelPlan:
    meshes = [
        Mesh(s.mesh.axes, s.mesh.sizes, stage.devices)
        for s, stage in zip(solutions, found.stages, strict=True)
    ]
    rows = list(zip(found.stages, meshes, solutions, strict=True))
    crossing = boundaries(chain, [(s.first, s.stop, m, one) for s, m, one in rows], cluster)
    named, runs = patterns_of(chain, solutions)
    stages = tuple(
        StagePlan(s.first, s.stop, mesh, one.recompute, run, one.predicted)
        for (s, mesh, one), run in zip(rows, runs, strict=True)
    )
    return ParallelPlan(
        Fingerprint(config.model, chain.digest(), chain.num_layers),
        Fingerprint(cluster.name, cluster.fingerprint(), cluster.num_devices),
        config.to_json(),
        found.schedule,
        found.num_microbatches,
        named,
        stages,
        crossing,
        _prediction(found, stages, crossing, cluster, solutions),
    )


def _prediction(
    found: InterOpPlan,
    stages: tuple[StagePlan, ...],
    crossing: tuple[Boundary, ...],
    cluster: Cluster,
    solutions: tuple[StageSolution, ...],
) -> Prediction:
    step_s, bubble = step_time(stages, crossing, found.schedule, found.num_microbatches)
    sources = sorted({source for kind in cluster.kinds for source in kind.sources.values()})
    return Prediction(
        step_s,
        found.bound_s,
        bubble,
        textwrap.shorten(f"cluster file {cluster.name}: {'; '.join(sources)}", 300),
    )
