"""``picture``: a plan in lines of text: devices, stages, memory, how parameters lie. No torch."""

from collections.abc import Iterator

from blocks.pipeline.view.scale import bytes_text, time_text
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.stage_plan import LETTERS, StagePlan, runs_text

MAX_NODES = 16
BAR = 30


def picture(plan: ParallelPlan, devices_per_node: int | None = None) -> str:
    """The plan as a page of text.

    Args:
        devices_per_node: of the cluster; devices are drawn in one row without it.
    """
    return "\n".join(_lines(plan, devices_per_node))


def _lines(plan: ParallelPlan, devices_per_node: int | None) -> Iterator[str]:
    predicted = plan.predicted
    devices = f"{plan.num_devices} of {plan.cluster.size} devices"
    yield f"{plan.model.name}, {plan.model.size} layers, on {plan.cluster.name}, {devices}"
    yield (
        f"step {time_text(predicted.step_s, 's')} predicted, "
        f"bound {time_text(predicted.bound_s, 's')} "
        f"({predicted.gap:+.1%}), waiting {predicted.bubble:.0%}; "
        f"{plan.schedule}, {plan.num_microbatches} microbatch{'es' * (plan.num_microbatches > 1)}"
    )
    yield ""
    yield from _devices(plan, devices_per_node or plan.cluster.size)
    yield ""
    yield "stage  layers     mesh       forward   backward     update       peak  in flight"
    for at, stage in enumerate(plan.stages):
        yield _row(at, stage)
    yield ""
    yield from _bars(plan)
    yield ""
    yield from _parameters(plan)
    if plan.notes:
        yield ""
        yield from plan.notes


def _devices(plan: ParallelPlan, devices_per_node: int) -> Iterator[str]:
    """A row a node, the number of the stage for every device, runs of equal rows once."""
    of = {rank: at for at, stage in enumerate(plan.stages) for rank in stage.mesh.ranks}
    width = len(str(len(plan.stages) - 1)) + 1
    shown, skipped = 0, 0
    for first in range(0, plan.cluster.size, devices_per_node):
        ranks = range(first, min(first + devices_per_node, plan.cluster.size))
        row = "".join(f"{of.get(rank, '.')!s:>{width}}" for rank in ranks)
        if shown < MAX_NODES:
            yield f"node {first // devices_per_node:>3} {row}"
            shown += 1
        else:
            skipped += 1
    if skipped:
        yield f"... and {skipped} more nodes"


def _row(at: int, stage: StagePlan) -> str:
    p = stage.predicted
    mesh = "x".join(map(str, stage.mesh.sizes)) + (" again" if stage.recompute else "")
    layers = f"{stage.first}-{stage.stop - 1}"
    flight = p.in_flight * p.flight_bytes
    times = "  ".join(f"{time_text(s, 's'):>9}" for s in (p.forward_s, p.backward_s, p.update_s))
    sizes = "  ".join(f"{bytes_text(size):>9}" for size in (p.peak_bytes, flight))
    return (
        f"{at:>5}  {layers:<9}  {mesh:<8} {times}  {sizes}  devices {runs_text(stage.mesh.ranks)}"
    )


def _bars(plan: ParallelPlan) -> Iterator[str]:
    """Where the time of each stage goes."""
    step_s = plan.predicted.step_s
    for at, stage in enumerate(plan.stages):
        p = stage.predicted
        parts = [("#", p.compute_s), ("~", sum(p.collective_s.values()))]
        drawn = "".join(mark * round(BAR * s / step_s) for mark, s in parts) if step_s else ""
        yield f"{at:>5}  {drawn[:BAR]:.<{BAR}}  # computing  ~ collectives  . waiting"


def _parameters(plan: ParallelPlan) -> Iterator[str]:
    yield "parameters: how they lie / how gradients are summed / how the optimizer is cut"
    yield LETTERS
    alike: dict[tuple, list[str]] = {}  # patterns differ in operations too
    for name, pattern in plan.patterns.items():
        if pattern.parameters:
            alike.setdefault(tuple(pattern.parameters.items()), []).append(name)
    width = max((len(name) for parameters in alike for name, _ in parameters), default=0)
    for parameters, names in alike.items():
        yield f"pattern{'s' * (len(names) > 1)} {', '.join(names)}"
        for parameter, places in parameters:
            yield f"  {parameter:<{width}}  {' / '.join(places)}"
