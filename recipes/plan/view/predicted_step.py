"""``predicted_step``: the simulated passes of a plan, stage by stage. Needs no torch."""

import dataclasses

from blocks.pipeline.view import figure
from blocks.pipeline.view.layout import layout_of
from blocks.pipeline.view.svg import drawing
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.search.step_time import step_timeline

MAX_MICROBATCHES = 16
"""Drawn of a step with more: the pattern repeats."""

WIDTH = 1100
"""Of the drawing, in pixels."""


def predicted_step(plan: ParallelPlan) -> tuple[str, str]:
    """What is drawn, in words, and the drawing."""
    parts, count = plan.num_microbatches, min(plan.num_microbatches, MAX_MICROBATCHES)
    timeline = step_timeline(plan.stages, plan.boundaries, plan.schedule, count)
    told = f"passes by microbatch, simulated under {plan.schedule}, without the update"
    if count < parts:
        told += f"; drawn with {count} of {parts} microbatches, so stages wait for a larger share"
    shown = figure(timeline, unit="s", plan_title="forward and backward", row="stage")
    panels = tuple(dataclasses.replace(panel, note="") for panel in shown.panels)
    shown = dataclasses.replace(shown, panels=panels, memory=())  # drawn by cause beside it
    return told, drawing(shown, layout_of(shown, WIDTH, has_title=False))
