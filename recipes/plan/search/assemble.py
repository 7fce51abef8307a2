"""``assemble``: a plan from stages and their strategies. Needs no torch."""

import textwrap

from blocks.pipeline.inter_op import InterOpPlan
from blocks.sharding import Cluster, Mesh
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.prediction import Prediction
from recipes.plan.search.boundaries import boundaries
from recipes.plan.search.patterns import patterns_of
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.search.step_time import step_time
from recipes.plan.stage_plan import Boundary, StagePlan


def assemble(
    found: InterOpPlan,
    chain: LayerChain,
    cluster: Cluster,
    config: PlanConfig,
    solutions: tuple[StageSolution, ...],
) -> ParallelPlan:
    """The plan, its step simulated with what goes between the stages where they lie.

    Args:
        found: stages as the tables of layer costs have them.
        chain: layers of the model, for the rows of a microbatch.
        solutions: of the stages.
    """
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
