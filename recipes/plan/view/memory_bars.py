"""``memory_bars``: what a device of every stage holds, against what it has."""

from blocks.pipeline.view.scale import bytes_text
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.prediction import StagePrediction
from recipes.plan.view.drawing import CAUSES, GRID, INK, box, stage_colour, svg, text

SEEN = 0.05
"""Share of a device's memory below which bars are drawn against the fullest stage."""

_HEIGHT, _STEP, _LEFT, _TOP, _WIDTH = 18, 26, 96, 34, 640


def memory_bars(plan: ParallelPlan, memory_bytes: float | None = None) -> str:
    """A bar a stage, cut by what the bytes are for.

    Args:
        memory_bytes: that a device has; drawn as a line, unless bars would be too short to be seen.
    """
    has = memory_bytes
    if memory_bytes is not None and plan.peak_bytes < SEEN * memory_bytes:
        memory_bytes = None
    span = max([plan.peak_bytes, memory_bytes or 0.0]) * 1.04
    parts, x = [], float(_LEFT)
    for name, colour in zip(_NAMES, CAUSES, strict=True):
        parts += [box(x, 6, 11, 11, colour), text(x + 16, 15, name, "muted")]
        x += 34 + 6.2 * len(name)
    for at, stage in enumerate(plan.stages):
        y, x = _TOP + at * _STEP, float(_LEFT)
        colour = stage_colour(at, len(plan.stages))
        parts += [box(_LEFT - 90, y, 6, _HEIGHT, colour), text(_LEFT - 78, y + 13, f"stage {at}")]
        for name, num_bytes, cause in zip(_NAMES, _bytes(stage.predicted), CAUSES, strict=True):
            width = num_bytes / span * _WIDTH
            parts.append(box(x, y, width, _HEIGHT, cause, f"{name}: {bytes_text(num_bytes)}"))
            x += width
        if memory_bytes is not None:  # beside the line, not under it
            x = max(x, _LEFT + memory_bytes / span * _WIDTH)
        parts.append(text(x + 6, y + 13, bytes_text(stage.predicted.peak_bytes), "muted"))
    height = _TOP + len(plan.stages) * _STEP
    if memory_bytes is not None:
        x = _LEFT + memory_bytes / span * _WIDTH
        line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height}" stroke="{INK}"/>'
        parts += [line, text(x, height + 14, f"{bytes_text(memory_bytes)} a device", "", "end")]
    elif has is not None:
        parts.append(text(_LEFT, height + 14, f"of {bytes_text(has)} a device"))
    rule = f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP - 6}" y2="{height}" stroke="{GRID}"/>'
    return svg(_LEFT + _WIDTH + 90, height + 20, [rule, *parts], "bytes held by a device")


_NAMES = ("parameters", "gradients", "optimizer", "in flight", "transient")


def _bytes(predicted: StagePrediction) -> tuple[float, ...]:
    flight = predicted.in_flight * predicted.flight_bytes
    return (
        predicted.parameter_bytes,
        predicted.gradient_bytes,
        predicted.optimizer_bytes,
        flight,
        predicted.transient_bytes,
    )
