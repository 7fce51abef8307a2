"""What binds a plan and what would change it, in sentences. Needs numpy, no torch."""

from collections.abc import Iterator

from blocks.pipeline.inter_op import DoesNotFit, InterOpPlan
from blocks.pipeline.view.scale import bytes_text
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.search.partition import Partition, memory_bytes
from recipes.plan.search.turns import Searched

FEWER_CELLS = 40
"""Stretches of layers of a plan that is only compared with."""

SHOWN = 5e-4
"""Share of a step that is told of."""


def notes_of(searched: Searched, cluster: Cluster, config: PlanConfig) -> tuple[str, ...]:
    """The largest part of the step, how near memory is, what the bound does not speak of, and what
    other limits would bring.

    Other limits are tried on the tables of layer costs that the plan was chosen from, and compared
    with what these answer under the plan's own.
    """
    caps, plan = memory_bytes(cluster, config), searched.plan
    others = _others(searched.partition, searched.sought, caps)
    bound = _bound(plan, searched.inter_op)
    return (_largest_part(plan), _memory(plan, caps, cluster), *bound, *others)


def _bound(plan: ParallelPlan, found: InterOpPlan) -> Iterator[str]:
    """What the bound does not speak of."""
    less = 1 - plan.predicted.step_s / found.bound_s if found.bound_s else 0.0
    if less > SHOWN:
        yield f"the bound is that of the costs of layers; stages solved alone take {less:.1%} less"
    if found.granularity > 1:
        yield f"the bound is that of stages cut at every {found.granularity}th layer"


def _largest_part(plan: ParallelPlan) -> str:
    step_s = plan.predicted.step_s
    slowest = max(range(len(plan.stages)), key=lambda at: _busy(plan, at))
    stage = plan.stages[slowest]
    parts = {"computing": stage.predicted.compute_s, **stage.predicted.collective_s}
    parts["waiting for other stages"] = max(0.0, step_s - _busy(plan, slowest))
    name, seconds = max(parts.items(), key=lambda part: part[1])
    return f"stage {slowest} has most to do; {seconds / step_s:.0%} of its step is {name}"


def _busy(plan: ParallelPlan, stage: int) -> float:
    predicted = plan.stages[stage].predicted
    each = predicted.forward_s + predicted.backward_s
    return plan.num_microbatches * each + predicted.update_s


def _memory(plan: ParallelPlan, caps: dict[str, float], cluster: Cluster) -> str:
    def share(stage: int) -> float:
        kind = cluster.kind_of(plan.stages[stage].mesh.ranks[0]).name
        return plan.stages[stage].predicted.peak_bytes / caps[kind]

    fullest = max(range(len(plan.stages)), key=share)
    held = plan.stages[fullest].predicted.peak_bytes
    return f"stage {fullest} holds most: {bytes_text(held)}, {share(fullest):.0%} of a device"


def _others(partition: Partition, found: InterOpPlan, caps: dict[str, float]) -> list[str]:
    said = []
    for word, factor in (("half", 0.5), ("twice", 2.0)):
        changed = {kind: factor * size for kind, size in caps.items()}
        try:
            other = partition.best(changed, max_cells=FEWER_CELLS)
        except DoesNotFit as error:
            said.append(f"with {word} the memory: no plan, {_short(error)}")
            continue
        said.append(f"with {word} the memory: {_against(other, found, looser=factor > 1)}")
    if found.num_stages > 1:
        try:
            other = partition.best(caps, max_stages=1, max_cells=FEWER_CELLS)
            said.append(f"with one stage: {_against(other, found)}")
        except DoesNotFit as error:
            if error.limit == "memory":  # else devices of several kinds, which are no one stage
                said.append(f"with one stage: no plan, {_short(error)}")
    return said


def _short(error: DoesNotFit) -> str:
    return f"{bytes_text(error.shortfall_bytes)} of a device too few"


def _against(other: InterOpPlan, found: InterOpPlan, *, looser: bool = False) -> str:
    """The same, were the limits others; ``looser`` ones hold for what was found, too."""
    if (other.stages, other.num_microbatches) == (found.stages, found.num_microbatches):
        return "the same plan"
    change = other.makespan_s / found.makespan_s - 1
    if looser and change >= 0:
        return "none that is quicker"
    stages = f"{other.num_stages} stage{'s' if other.num_stages > 1 else ''}"
    parts = f"{other.num_microbatches} microbatch{'es' if other.num_microbatches > 1 else ''}"
    return f"{stages}, {parts}, step {change:+.1%}"
