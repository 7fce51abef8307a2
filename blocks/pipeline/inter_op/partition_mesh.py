"""``partition_mesh``: layers to stages, stages to submeshes, schedule and microbatches together.

Needs numpy, no torch.
"""

from collections.abc import Callable, Sequence

from blocks._checks import check, check_count, check_positive
from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.caps import Caps, caps_of
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.does_not_fit import why_not
from blocks.pipeline.inter_op.every_cut import every_cut
from blocks.pipeline.inter_op.flow import FLOWS, flow_name
from blocks.pipeline.inter_op.formula import alpa
from blocks.pipeline.inter_op.grid import FINER, bounds_of, near, thin
from blocks.pipeline.inter_op.inter_op_plan import InterOpPlan, PlannedStage
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.plan_search import PlanSearch, Progress
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.problem import Problem
from blocks.pipeline.inter_op.stage_table import StageSource, StageTable
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
    schedules: Sequence[str] = ("one_f_one_b", "gpipe", "zb_h1"),
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
        DoesNotFit: no plan keeps to the limits, with the limit and the shortfall.
        ValueError: an argument out of range.

    Reference: Zheng et al. 2022, Alpa, section 5.2.
    """
    counts = [num_microbatches] if isinstance(num_microbatches, int) else [*num_microbatches]
    check(bool(counts), "num_microbatches", "at least one number", counts)
    for count in counts:
        check_count("num_microbatches", count)
    check_positive("max_stages", max_stages)
    check_count("max_cells", max_cells)
    check(0 <= epsilon < 1, "epsilon", "a share of at least 0", epsilon)
    names = [*dict.fromkeys(flow_name(name) for name in schedules)]
    check(bool(names), "schedules", "at least one", names)
    sources = {count: _source(table, count) for count in counts}
    every = {count: bounds_of(source) for count, source in sources.items()}
    longest = max(map(len, every.values()))
    cell = -(-(longest - 1) // max_cells)

    def problem_of(name: str, count: int, stages: StageTable) -> Problem:
        devices = budget(stages.shapes, num_hosts, devices_per_host, kinds, whole=not idle_devices)
        caps = caps_of(memory_cap_bytes, stages.shapes)
        most = min(max_stages or len(stages.bounds), len(stages.bounds) - 1)
        return Problem(Priced(stages, name, count, caps), devices, most, caps)

    def finer(search: PlanSearch, step: int) -> PlanSearch:
        """Near the cuts found, and only there."""
        while step > 1:
            step = -(-step // FINER)
            assert search.best is not None, "it began with a plan"
            found, plan = search.best
            name, count = found.priced.schedule, found.priced.count
            stages = sources[count].at(near(found.cuts(plan), every[count], step, max_cells))
            search = PlanSearch([problem_of(name, count, stages)], epsilon, 0, progress)
            search.seed(search.problems[0], found, plan)
            search.run()
        return search

    thinned = {count: sources[count].at(thin(bounds, cell)) for count, bounds in every.items()}
    problems = [problem_of(name, count, thinned[count]) for count in counts for name in names]
    search = PlanSearch(problems, epsilon, effort, progress)
    search.start()
    search.run()
    if search.best is None:
        raise why_not([(p.priced, p.max_stages) for p in problems], problems[0].devices)
    bound_s, rivals, grid = search.bound_s, search.rivals, cell
    search = finer(search, cell)
    sums = {count: source for count, source in sources.items() if isinstance(source, LayerSums)}
    boundable = len(sums) == len(counts) and not any(FLOWS[name].follows_depth for name in names)
    if cell > 1 and bound_every_cut and boundable:
        bound_s, grid = search.best_s * (1 - epsilon / 2), 1
        for problem in problems:
            name, count = problem.priced.schedule, problem.priced.count
            limits = (name, count, problem.caps, problem.devices, max_stages or longest - 1)
            found = every_cut(sums[count], *limits, wanted=bound_s, tolerance=epsilon / 2)
            bound_s = min(bound_s, found.bound_s)
            if found.plan is not None:
                cuts, plan = found.plan
                few = problem_of(name, count, sums[count].at(cuts))
                other = PlanSearch([few], epsilon, 0, progress)
                other.meet(few, plan)
                search = min(search, finer(other, FINER), key=lambda one: one.best_s)
    assert search.best is not None, "it began with a plan"
    problem, plan = search.best
    rivals[problem.priced.schedule, problem.priced.count] = search.best_s
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
