"""``diff``: what two plans do otherwise, line by line. Needs no torch."""

from collections.abc import Iterator

from blocks.pipeline.view.scale import bytes_text, time_text
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.stage_plan import Pattern, StagePlan, runs_text

MAX_LINES = 12
"""Lines about one pattern."""


def diff(a: ParallelPlan, b: ParallelPlan) -> tuple[str, ...]:
    """Lines ``what: before -> after``; none where both plans do the same.

    Names of patterns do not count, only what they say.
    """
    return tuple(_lines(a, b))


def _lines(a: ParallelPlan, b: ParallelPlan) -> Iterator[str]:
    for what in ("model", "cluster", "schedule", "num_microbatches"):
        before, after = getattr(a, what), getattr(b, what)
        if before != after:
            yield f"{what}: {before} -> {after}"
    for key in sorted({*a.settings, *b.settings}):
        before, after = a.settings.get(key), b.settings.get(key)
        if before != after:
            yield f"setting {key}: {before} -> {after}"
    if len(a.stages) != len(b.stages):
        yield f"stages: {len(a.stages)} -> {len(b.stages)}"
    for at, (before, after) in enumerate(zip(a.stages, b.stages, strict=False)):
        for what, one, other in zip(
            ("layers", "mesh", "devices", "recompute"), _facts(before), _facts(after), strict=True
        ):
            if one != other:
                yield f"stage {at} {what}: {one} -> {other}"
    yield from _patterns(a, b)
    before, after = a.predicted.step_s, b.predicted.step_s
    if before != after:
        change = f" ({after / before - 1:+.1%})" if before else ""
        yield f"predicted step: {time_text(before, 's')} -> {time_text(after, 's')}{change}"
    if a.peak_bytes != b.peak_bytes:
        peaks = f"{bytes_text(a.peak_bytes)} -> {bytes_text(b.peak_bytes)}"
        yield f"predicted peak: {peaks}"


def _facts(stage: StagePlan) -> tuple[str, str, str, str]:
    sizes = " x ".join(map(str, stage.mesh.sizes))
    layers, devices = f"{stage.first} to {stage.stop - 1}", runs_text(stage.mesh.ranks)
    return layers, sizes, devices, "yes" if stage.recompute else "no"


def _patterns(a: ParallelPlan, b: ParallelPlan) -> Iterator[str]:
    """Runs of layers whose choices differ in the same way, with what differs."""
    runs: list[tuple[int, int, tuple[str, ...]]] = []
    for layer in range(min(a.model.size, b.model.size)):
        lines = tuple(_choices(_pattern(a, layer), _pattern(b, layer)))
        if runs and runs[-1][2] == lines:
            runs[-1] = (runs[-1][0], layer, lines)
        else:
            runs.append((layer, layer, lines))
    for first, last, lines in runs:
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        yield from (f"{layers} {line}" for line in lines[:MAX_LINES])
        if len(lines) > MAX_LINES:
            yield f"{layers}: {len(lines) - MAX_LINES} more choices differ"


def _pattern(plan: ParallelPlan, layer: int) -> Pattern:
    return plan.patterns[plan.stages[plan.stage_of(layer)].pattern_of(layer)]


def _choices(a: Pattern, b: Pattern) -> Iterator[str]:
    for name in sorted({*a.parameters, *b.parameters}):
        before, after = a.parameters.get(name), b.parameters.get(name)
        if before != after:
            yield f"{name}: {_text(before)} -> {_text(after)}"
    for name in sorted({*a.choices, *b.choices}):
        before, after = a.choices.get(name), b.choices.get(name)
        if before != after:
            yield f"{name}: {_cut(before)} -> {_cut(after)}"


def _cut(factor: str | None) -> str:
    """A choice in words where it is none: on a mesh axis alone ``-`` says that nothing is cut."""
    return "not there" if factor is None else "not cut" if factor == "-" else factor


def _text(places: tuple[str, ...] | None) -> str:
    return "not there" if places is None else " / ".join(places)
