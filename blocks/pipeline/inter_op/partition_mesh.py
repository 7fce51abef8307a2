"""``partition_mesh``: layers to stages, stages to submeshes, schedule and microbatches together.

Needs numpy, no torch.
"""

from collections.abc import Callable, Sequence

from blocks._checks import check, check_count, check_positive
from blocks.pipeline.inter_op.caps import Caps
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.cut_search import CutSearch
from blocks.pipeline.inter_op.flow import flow_name
from blocks.pipeline.inter_op.formula import alpa
from blocks.pipeline.inter_op.inter_op_plan import InterOpPlan, PlannedStage
from blocks.pipeline.inter_op.plan_search import Progress
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.stage_table import StageSource
from blocks.pipeline.inter_op.submesh import cover

Source = StageSource | Callable[[int], StageSource]
"""Stage costs; or a function from the number of microbatches to them."""


def partition_mesh(
    table: Source,
    num_hosts: int,
    devices_per_host: int,
    *,
    num_microbatches: int | Sequence[int],
    memory_cap_bytes: Caps = None,
    schedules: Sequence[str] = ("one_f_one_b", "eager_1f1b", "gpipe", "zb_h1"),
    kinds: Sequence[str] = (),
    idle_devices: bool = False,
    max_stages: int | None = None,
    epsilon: int | float = 0.0,
    effort: int = 20_000,
    max_cells: int = 96,
    bound_every_cut: bool = True,
    progress: Progress | None = None,
) -> InterOpPlan:
    """The partition of layers and devices whose step is simulated to be fastest.

    For every schedule and number of microbatches a bound on all partitions is found, and formulas
    (Alpa's, and one that no plan comes below; both with transfers, what is done once a step, and
    the memory of microbatches in flight) are minimised over all partitions. The plans met on the
    way are simulated on the real schedule. Then partial plans are continued in the order of their
    bounds, until none is left that could be better than the best simulated one (``gap`` is 0 then)
    or ``effort`` is spent. Combinations whose bound is no better are left out.

    Args:
        table: what stages cost; where the size of a microbatch follows from their number, a
            function from that number.
        num_hosts, devices_per_host: the cluster.
        num_microbatches: of a step; several to choose from.
        memory_cap_bytes: of a device.
        schedules: names of ``FLOWS``; ``1f1b`` is ``one_f_one_b``.
        kinds: kind of every host where there are several.
        idle_devices: whether a plan may leave devices out.
        max_stages: most stages of a plan.
        epsilon: share by which a formula may miss its least value; 0 is exact.
        effort: partial plans to continue at most in search of a proof. It bounds the search by
            counting, not by a clock, so equal arguments give equal plans.
        max_cells: where a table has more stretches between bounds, partitions are sought on a
            grid of so many, and then finer near the cuts found.
        bound_every_cut: whether the bound is one on every cut then, too, and cuts are sought where
            it says: where costs of layers add up (``LayerSums``) and no schedule's memory follows
            the number of all stages. Else it is the grid's.
        progress: called as the search goes on.

    Raises:
        DoesNotFit: no plan keeps to the limits, with the limit and the shortfall of cuts on the
            grid; where costs do not add up, only plans on the grid were looked at.
        ValueError: an argument out of range.

    Reference: Zheng et al. 2022, Alpa, section 5.2.
    """
    counts = _counts(num_microbatches)
    check_positive("max_stages", max_stages)
    check_count("max_cells", max_cells)
    check(0 <= epsilon < 1, "epsilon", "a share of at least 0", epsilon)
    names = [*dict.fromkeys(flow_name(name) for name in schedules)]
    check(bool(names), "schedules", "at least one", names)
    sources = {count: _source(table, count) for count in counts}
    asked = CutSearch(
        sources,
        names,
        num_hosts,
        devices_per_host,
        memory_cap_bytes,
        kinds,
        idle_devices,
        max_stages,
        epsilon,
        max_cells,
        progress,
    )
    first = asked.on_grid(effort)
    bound_s, grid = first.bound_s, asked.cell
    search = asked.finer(first, grid)
    if asked.cell > 1 and bound_every_cut and asked.is_boundable:
        (bound_s, search), grid = asked.over_every_cut(search), 1
    assert search.best is not None, "it began with a plan"
    problem, plan = search.best
    rivals = {**first.rivals, (problem.priced.schedule, problem.priced.count): search.best_s}
    shapes = [problem.priced.table.shapes[stage[2]] for stage in plan]
    places = cover(shapes, num_hosts, devices_per_host, kinds=kinds)
    return InterOpPlan(
        stages=_planned(problem.priced, plan, places),
        schedule=problem.priced.schedule,
        num_microbatches=problem.priced.count,
        makespan_s=search.best_s,
        formula_s=alpa(problem.priced).seconds(plan),
        bound_s=bound_s,
        granularity=grid,
        rivals=tuple((*key, least) for key, least in rivals.items()),
    )


def _counts(num_microbatches: int | Sequence[int]) -> list[int]:
    counts = [num_microbatches] if isinstance(num_microbatches, int) else [*num_microbatches]
    check(bool(counts), "num_microbatches", "at least one number", counts)
    for count in counts:
        check_count("num_microbatches", count)
    return counts


def _source(table: Source, count: int) -> StageSource:
    source = table if isinstance(table, StageSource) else table(count)
    check(isinstance(source, StageSource), "table", "a source of stage costs", type(source))
    return source


def _planned(
    priced: Priced, plan: Plan, places: Sequence[tuple[int, ...]]
) -> tuple[PlannedStage, ...]:
    table, depth = priced.table, len(plan)
    stages = []
    for index, ((k, i, m, o), devices) in enumerate(zip(plan, places, strict=True)):
        send_s = return_s = 0.0
        if index + 1 < depth:
            hop = (i, m, plan[index + 1][2])
            send_s, return_s = float(table.send_s[hop]), float(table.return_s[hop])
        stages.append(
            PlannedStage(
                first=table.bounds[k],
                stop=table.bounds[i],
                shape=table.shapes[m],
                devices=devices,
                option=table.options[o],
                cost=table.cost(k, i, m, o),
                in_flight=priced.in_flight(depth - index, depth),
                send_s=send_s,
                return_s=return_s,
            )
        )
    return tuple(stages)
