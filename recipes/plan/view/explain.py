"""``explain``: why every choice of a plan: what it costs against the next best. Needs numpy."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline.view.scale import bytes_text, time_text
from blocks.sharding import Cluster, MeshCost, Strategy, strategy_of
from blocks.sharding.intra_op import Posed, pose
from recipes.plan.choice_text import choice_text, parse_choice
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.reduced import Reduced
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.search.candidates import state_bytes
from recipes.plan.settings import check_cluster
from recipes.plan.stage_plan import StagePlan, placements_text

MAX_ROWS = 16
"""Operations of a pattern, or tensors between stages, that are listed, most at stake first."""


class Reason(NamedTuple):
    """Why one operation is spread as it is.

    name: of the node in its layer.
    chosen, chosen_s: the choice, and seconds of a microbatch with all that its tensors cost.
    other, other_s: the best other choice, all else staying as it is.
    """

    name: str
    chosen: str
    chosen_s: float
    other: str
    other_s: float

    @property
    def saved_s(self) -> float:
        """What the choice saves."""
        return self.other_s - self.chosen_s


def reason_lines(reasons: Sequence[Reason]) -> list[str]:
    """A line each, in columns as wide as what they hold.

    >>> rows = [Reason("mm", "in", 0.1, "out", 0.2), Reason("a.long.name", "-", 0.002, "in", 0.3)]
    >>> print(*reason_lines(rows), sep="\\n")
      mm           in  100.000 ms; out would take 200.000 ms
      a.long.name  -     2.000 ms; in would take 300.000 ms
    """
    rows = [(one.name, one.chosen, f"{one.chosen_s * 1e3:.3f}") for one in reasons]
    name, chosen, took = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        f"  {row[0]:<{name}}  {row[1]:<{chosen}}  {row[2]:>{took}} ms; "
        f"{one.other} would take {one.other_s * 1e3:.3f} ms"
        for row, one in zip(rows, reasons, strict=True)
    ]


def explain(plan: ParallelPlan, chain: LayerChain, cluster: Cluster) -> tuple[str, ...]:
    """Lines about the step, the limits, and the choices with most at stake of every pattern.

    Args:
        chain: layers of the model for the plan's rows of a microbatch.
        cluster: the plan's.

    Raises:
        ValueError: another model or cluster than the plan's.
    """
    plan.model.check_same(
        "model", Fingerprint(str(plan.settings.get("model")), chain.digest(), chain.num_layers)
    )
    check_cluster(plan, cluster)
    return tuple(_lines(plan, chain, cluster))


def _lines(plan: ParallelPlan, chain: LayerChain, cluster: Cluster) -> Iterator[str]:
    predicted = plan.predicted
    error = "unknown" if predicted.error is None else f"{predicted.error:.0%}"
    yield f"step {time_text(predicted.step_s, 's')} predicted; error of the cost model {error}"
    bound = time_text(predicted.bound_s, "s")
    yield f"by the costs of all strategies looked at, no plan takes less than {bound}"
    yield from plan.notes
    yield from _crossing(plan)
    told: set[str] = set()
    for at, stage in enumerate(plan.stages):
        new = {name for _, _, name in stage.patterns} - told
        told |= new
        if new:
            yield f"stage {at}, layers {stage.first} to {stage.stop - 1} on {stage.mesh}"
        for name, reasons in reasons_of(plan, stage, chain, cluster).items():
            if name in new:
                yield f"pattern {name}"
                yield from reason_lines(reasons[:MAX_ROWS])


def _crossing(plan: ParallelPlan) -> Iterator[str]:
    """What goes between stages, what takes longest first."""
    slowest = sorted(plan.boundaries, key=lambda one: -one.seconds)
    for one in slowest[:MAX_ROWS]:
        sent, wanted = map(placements_text, one.placements)
        yield (
            f"stage {one.source} to {one.target}, {one.phase}: {one.value}, "
            f"{bytes_text(float(one.num_bytes))}, {sent} to {wanted}, "
            f"{time_text(one.seconds, 's')} a {'step' if one.once else 'microbatch'}"
        )
    if len(slowest) > MAX_ROWS:
        yield f"... and {len(slowest) - MAX_ROWS} more tensors between stages"


def reasons_of(
    plan: ParallelPlan, stage: StagePlan, chain: LayerChain, cluster: Cluster
) -> dict[str, list[Reason]]:
    """For every pattern of a stage its choices, those that save most first."""
    config = PlanConfig.from_json(plan.settings)
    reduced = Reduced.of(chain, stage.first, stage.stop, repeated=stage.recompute)
    posed = pose(
        *(reduced.graph, stage.mesh, MeshCost(cluster, stage.mesh)),
        num_microbatches=plan.num_microbatches,
        in_flight=stage.predicted.in_flight,
        state_bytes=state_bytes(config.optimizer),
    )
    labels = _labels(posed, plan_strategies(plan, stage, reduced))
    found: dict[str, list[Reason]] = {}
    for at, (place, _) in enumerate(reduced.origins):
        node = reduced.graph.nodes[at]
        layer = reduced.stands_for[place][0]
        costs = _costs(posed, labels, at)
        others = [k for k in range(len(costs)) if k != labels[at]]
        if not others or node.role == "output":
            continue
        other = min(others, key=lambda k: costs[k])
        texts = [
            choice_text(node.rule, posed.labels[at].strategies[k].choices)
            for k in (labels[at], other)
        ]
        reason = Reason(reduced.name(at), texts[0], costs[labels[at]], texts[1], costs[other])
        found.setdefault(stage.pattern_of(layer), []).append(reason)
    return {
        name: sorted(reasons, key=lambda reason: -reason.saved_s) for name, reasons in found.items()
    }


def plan_strategies(plan: ParallelPlan, stage: StagePlan, reduced: Reduced) -> tuple[Strategy, ...]:
    """What a plan says of the nodes of a stage cut short."""
    found = []
    for at, (place, _) in enumerate(reduced.origins):
        layer = reduced.stands_for[place][0]
        choices = plan.patterns[stage.pattern_of(layer)].choices
        rule, name = reduced.graph.nodes[at].rule, reduced.name(at)
        check(name in choices, f"choice of {name}", "one in the plan", "none", "plan again")
        text = choices[name]
        found.append(strategy_of(rule, parse_choice(rule, text, f"choice of {name}")))
    return tuple(found)


def _labels(posed: Posed, strategies: Sequence[Strategy]) -> list[int]:
    """Of all variables; shared copies take what is best beside the strategies."""
    labels = []
    for node, strategy in zip(posed.labels, strategies, strict=True):
        choices = [one.choices for one in node.strategies]
        labels.append(choices.index(strategy.choices))
    labels += [0] * (len(posed.problem.seconds) - len(labels))
    for at in range(len(posed.labels), len(labels)):
        costs = _costs(posed, labels, at)
        labels[at] = min(range(len(costs)), key=costs.__getitem__)
    return labels


def _costs(posed: Posed, labels: Sequence[int], variable: int) -> list[float]:
    """Seconds of every label of a variable with all terms it is in, the others staying."""
    total = posed.problem.seconds[variable].copy()
    for variables, table in posed.problem.terms:
        if variable in variables:
            total += table[tuple(slice(None) if v == variable else labels[v] for v in variables)]
    return [float(seconds) for seconds in total]
