"""``plan_page``: a parallel plan as one HTML page that needs no network."""

from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from blocks.pipeline.view.scale import bytes_text, time_text
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.stage_plan import LETTERS, ParameterPlacement, StagePlan
from recipes.plan.view.device_map import device_map
from recipes.plan.view.drawing import stage_colour
from recipes.plan.view.memory_bars import memory_bars
from recipes.plan.view.parameter_tiles import TILES, parameter_tiles
from recipes.plan.view.predicted_step import predicted_step

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 14px/1.5 Inter, 'Helvetica Neue', Arial, sans-serif; color: #1f2430;
       margin: 28px auto; max-width: 1160px; padding: 0 20px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 4px 0 10px; } ul.notes { margin: 0; padding-left: 18px; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0; padding: 0; }
.facts li { list-style: none; background: #f3f4f6; border-radius: 8px; padding: 7px 11px; }
.facts b { display: block; font-size: 16px; font-variant-numeric: tabular-nums; }
.muted, .facts span { color: #6b7280; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 18px 4px 0; text-align: left; border-bottom: 1px solid #e5e7eb; }
th { color: #6b7280; font-weight: 500; }
i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 7px; }
svg { max-width: 100%; height: auto; } details { margin: 8px 0; } summary { cursor: pointer; }
</style></head><body>
<h1>$title</h1><p class="muted">$made_for</p>
<ul class="facts">$facts</ul>
<ul class="notes">$notes</ul>
<h2>Devices</h2><p class="muted">every device with the number of its stage</p>$devices
<h2>Stages</h2><p class="muted">forward and backward of a microbatch, update and collectives of a
step, on the device with most to do</p>$stages
<h2>Memory</h2><p class="muted">what a device of each stage holds at most</p>$memory
<h2>Predicted step</h2><p class="muted">$drawn</p>$timeline
<h2>Parameters</h2><p class="muted">$letters<br>$tiles</p>$patterns
</body></html>
""")


def plan_page(
    plan: ParallelPlan, *, devices_per_node: int, memory_bytes: float | None = None
) -> str:
    """The page: devices, stages, memory, the predicted step, and how parameters are cut.

    Args:
        devices_per_node: of the cluster.
        memory_bytes: that a device has.
    """
    drawn, timeline = predicted_step(plan)
    return _PAGE.substitute(
        title=escape(f"{plan.model.name} on {plan.cluster.name}"),
        made_for=escape(
            f"{plan.model.size} layers, digest {plan.model.digest[:12]}; a cluster of "
            f"{plan.cluster.size} devices, digest {plan.cluster.digest[:12]}"
        ),
        facts="".join(
            f"<li><b>{escape(b)}</b><span>{escape(a)}</span></li>" for a, b in _facts(plan)
        ),
        notes="".join(f"<li>{escape(note)}</li>" for note in plan.notes),
        devices=device_map(plan, devices_per_node),
        stages=_table(plan),
        memory=memory_bars(plan, memory_bytes),
        drawn=escape(drawn),
        timeline=timeline,
        letters=LETTERS,
        tiles=TILES,
        patterns="".join(_patterns(plan)),
    )


def _facts(plan: ParallelPlan) -> Sequence[tuple[str, str]]:
    predicted = plan.predicted
    return (
        ("predicted step", time_text(predicted.step_s, "s")),
        ("against the lower bound", f"{predicted.gap:+.2%}"),
        ("waiting, of all devices' time", f"{predicted.bubble:.1%}"),
        ("stage" + "s" * (len(plan.stages) > 1), str(len(plan.stages))),
        ("devices", str(plan.num_devices)),
        ("schedule", plan.schedule),
        ("microbatch" + "es" * (plan.num_microbatches > 1), str(plan.num_microbatches)),
        ("most bytes on a device", bytes_text(plan.peak_bytes)),
    )


def _table(plan: ParallelPlan) -> str:
    head = ("stage", "layers", "devices", "mesh", "forward", "backward", "update", "collectives")
    rows = (_row(stage, at, len(plan.stages)) for at, stage in enumerate(plan.stages))
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table>"


def _row(stage: StagePlan, at: int, num_stages: int) -> str:
    predicted = stage.predicted
    axes = zip(stage.mesh.axes, stage.mesh.sizes, strict=True)
    collectives = ", ".join(
        f"{name} {time_text(seconds, 's')}"
        for name, seconds in sorted(predicted.collective_s.items())
        if seconds
    )
    cells = (
        f'<i style="background:{stage_colour(at, num_stages)}"></i>{at}',
        _layers(stage.first, stage.stop) + (", recomputed" if stage.recompute else ""),
        str(stage.mesh.num_ranks),
        escape(" × ".join(f"{axis}={size}" for axis, size in axes)),
        *(
            time_text(seconds, "s")
            for seconds in (predicted.forward_s, predicted.backward_s, predicted.update_s)
        ),
        escape(collectives) or "none",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _layers(first: int, stop: int) -> str:
    return f"{first}" if stop == first + 1 else f"{first} to {stop - 1}"


def _patterns(plan: ParallelPlan) -> Iterator[str]:
    """A fold for every way parameters are cut, with the layers that are."""
    alike: dict[tuple[tuple[str, ParameterPlacement], ...], list[str]] = {}
    for name, pattern in plan.patterns.items():  # some differ in operations alone
        alike.setdefault(tuple(pattern.parameters.items()), []).append(name)
    for parameters, names in alike.items():
        users = [
            (stage.mesh, first, stop)
            for stage in plan.stages
            for first, stop, used in stage.patterns
            if used in names
        ]
        runs: list[tuple[int, int]] = []
        for _, first, stop in users:
            if runs and runs[-1][1] == first:
                first, _ = runs.pop()
            runs.append((first, stop))
        where = ", ".join(_layers(*run) for run in runs)
        many = runs[-1][1] > runs[0][0] + 1
        said = f"pattern{'s' * (len(names) > 1)} {', '.join(names)}: layer{'s' * many} {where}"
        yield f"<details open><summary>{escape(said)}</summary>"
        if parameters:
            yield parameter_tiles(dict(parameters), [mesh for mesh, _, _ in users])
        else:
            yield '<p class="muted">no parameters</p>'
        yield "</details>"
