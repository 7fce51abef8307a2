"""``plan_page`` and ``simulation_page``: what the verbs print, drawn."""

from collections.abc import Sequence
from html import escape

from blocks.pipeline.view.scale import bytes_text
from blocks.sched.cluster_sim import Event
from blocks.sched.placement import Placement
from recipes.place.planning.asked_for import asked_for
from recipes.place.planning.change import Change
from recipes.place.planning.curves import Curve
from recipes.place.planning.outcome_rows import group_rows, model_rows
from recipes.place.planning.planned import Planned
from recipes.place.planning.served import by_model
from recipes.place.planning.tables import points, share
from recipes.place.planning.task import AnyOutcome, PlaceTask
from recipes.place.view.curve_charts import curve_charts
from recipes.place.view.frame import facts, frame, section, table
from recipes.place.view.occupancy import occupancy
from recipes.place.view.placement_map import placement_map
from recipes.place.view.way_bars import way_bars


def plan_page(found: Planned) -> str:
    """The placement, what it is compared with, what would change it, and a run of it."""
    task, plan = found.task, found.plan
    fresh = task.at(Change(draw=1))
    outcome = fresh.outcome(plan.placement)
    ways = [[way.name, share(way.searched), share(way.fresh), way.note] for way in found.ways]
    asked = [[one.change, share(one.attainment), points(one.gain)] for one in found.what_ifs]
    body = [
        facts(
            (
                ("in time, simulated", share(plan.attainment)),
                ("on another draw", share(found.ways[0].fresh)),
                ("possible at most", share(plan.bound)),
                ("times this traffic at 99 %", found.carries_text),
                ("placements simulated", f"{plan.evaluated:,}"),
            )
        ),
        *(f'<p class="bad">{escape(line)}</p>' for line in found.unhosted),
        _placement(task, plan.placement),
        section(
            "Compared",
            way_bars(found.ways, plan.bound)
            + table(["", "in time", "another draw", ""], ways, words=[3]),
        ),
        section(
            "What binds",
            table(["what if", "in time", ""], asked) if asked else "",
            found.binds,
        ),
        *_run(outcome, ()),
    ]
    return frame("Placement", asked_for(task), [part for part in body if part])


def simulation_page(
    task: PlaceTask, outcome: AnyOutcome, curves: Sequence[Curve], events: Sequence[Event] = ()
) -> str:
    """A run of a placement, with its faults if there are any, and curves."""
    every = outcome.counts
    told = {
        "answered": every["finished"],
        "refused": every["rejected"],
        "late": every["late"],
        "lost": every["unplaced"] + every["failed"],
    }  # in the words of the table below
    counts = [(name, f"{count:,}") for name, count in told.items() if count]
    body = [
        facts((("in time, simulated", share(outcome.attainment)), *counts)),
        _placement(task, outcome.placement),
        *_run(outcome, events),
    ]
    if curves:
        note = (
            "Simulated. The placement stays as it is, but is searched for anew for other devices."
        )
        drawn = curve_charts(curves, lone=False)
        body.append(section("Attainment over rate, CV, limits and devices", drawn, note))
    return frame("Simulated placement", asked_for(task), body)


def _placement(task: PlaceTask, placement: Placement) -> str:
    drawn = placement_map(
        placement,
        task.profiles,
        task.memory_bytes,
        task.num_devices,
        task.config.cluster.devices_per_node,
    )
    lighter = ", keys and values lighter than weights" if task.generates else ""
    note = f"A column is a device, as tall as its {bytes_text(float(task.memory_bytes))}{lighter}."
    return section("Models on devices", drawn, note)


def _run(outcome: AnyOutcome, events: Sequence[Event]) -> tuple[str, ...]:
    counts = {
        "refused": lambda row: row.refused,
        "late": lambda row: row.late,
        "lost": lambda row: row.unplaced + row.failed,
    }
    return (
        section("Groups over time", occupancy(outcome, events), "Simulated."),
        section("Models", table(*model_rows(by_model(outcome), counts))),
        section("Groups", table(*group_rows(outcome))),
    )
