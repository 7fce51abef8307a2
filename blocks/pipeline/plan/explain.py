"""``explain``: a plan in one paragraph of words. Needs no torch."""

from blocks.pipeline.plan.merge import Counted
from blocks.pipeline.plan.pipeline_plan import PipelinePlan
from blocks.pipeline.plan.trials import Knobs
from blocks.pipeline.view.scale import bytes_text, time_text

_CUTS = {
    "uniform": "of equal length",
    "equal_cost": "of equal cost",
    "between": "between equal length and equal cost",
    "least_makespan": "cut by TeraPipe's program",
    "exhaustive": "the best of all cuts on the grid",
}


def explain(plan: PipelinePlan, cut: str, knobs: Knobs) -> str:
    """What was chosen, what it takes, what keeps it from taking less."""
    schedule = plan.schedule
    lengths = [b - a for a, b in zip(plan.bounds, plan.bounds[1:], strict=False)]
    tokens = f"{lengths[0]}" if len(set(lengths)) == 1 else f"{min(lengths)} to {max(lengths)}"
    chunks = schedule.num_stages // schedule.num_ranks
    worst = max(range(schedule.num_ranks), key=lambda rank: plan.peak_bytes[rank])
    cap = "no cap" if plan.memory_cap is None else f"a cap of {bytes_text(float(plan.memory_cap))}"
    peak = bytes_text(float(plan.peak_bytes[worst]))
    stages = f"{schedule.num_ranks} ranks" + (f" of {chunks} stages each" if chunks > 1 else "")
    many = f"in {plan.num_slices} slices each, {_CUTS[cut]}"
    slices = many if plan.num_slices > 1 else "that stay whole"
    parts = [
        f"{schedule.num_sequences} sequences {slices} ({tokens} tokens), on {stages}.",
        _ahead(knobs),
        _modes(plan),
        f"A step takes {time_text(float(plan.makespan_s), 's')}, of which the average rank idles "
        f"{plan.bubble:.2%}; rank {worst} peaks at {peak} under {cap}.",
        _limits(plan),
    ]
    return " ".join(part for part in parts if part)


def _ahead(knobs: Knobs) -> str:
    first, last = knobs.offsets[0], knobs.offsets[-1]
    if first == -float("inf"):
        return "Every rank finishes a sequence's backwards before the next sequence's forwards."
    half = knobs.counted is Counted.HALF
    how = "counted half in actions, half in work" if half else f"counted in {knobs.counted}"
    return (
        f"Forwards run up to {first:.3g} slices ahead of backwards on the first rank and "
        f"{last:.3g} on the last, {how}, as far as memory allows."
    )


def _modes(plan: PipelinePlan) -> str:
    split = any(action.kind == "W" for action in plan.schedule.programs[0])
    parts = ["Weight gradients fill waits"] if split else []
    if plan.recompute:
        stages = f"{len(plan.recompute)} of {plan.schedule.num_stages} stages"
        parts.append(f"{stages} recompute their activations")
    return "; ".join(parts) + "." if parts else ""


def _limits(plan: PipelinePlan) -> str:
    over = plan.makespan_s / plan.order_bound_s - 1 if plan.order_bound_s else 0.0
    order = "is proven best" if over < 1e-4 else f"is at most {over:.2%} longer than the best"
    gap = max(0.0, plan.gap)  # not -0.00 %
    return (
        f"For these slices under this cap the order {order}; whatever the cut, order and mode "
        f"allowed, without a cap, no step is faster by more than {gap:.2%} of the lower bound."
    )
