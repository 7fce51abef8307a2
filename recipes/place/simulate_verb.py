"""``python -m recipes.place simulate``: what becomes of the traffic under a placement."""

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

from blocks.sched.cluster_sim import Event
from recipes.place.arguments import config_of, config_parser
from recipes.place.planning import Change, PlaceTask, curves, read_placement
from recipes.place.planning.asked_for import asked_for
from recipes.place.planning.curves import Curve
from recipes.place.planning.events_file import read_events
from recipes.place.planning.outcome_rows import group_rows, model_rows
from recipes.place.planning.profiles_here import profiles_here
from recipes.place.planning.served import ModelServed, by_model, by_time
from recipes.place.planning.tables import points, share, table
from recipes.place.planning.task import AnyOutcome
from recipes.plan.writable import check_writable

DESCRIPTION = """Simulate the traffic of CONFIG on a placement that the verb plan wrote.

The traffic is another draw than the one that was searched with, unless it is a trace or --draw says
so. Events are faults, a JSON list such as
[{"at_s": 30, "kind": "down", "group": 0}, {"at_s": 60, "kind": "up", "group": 0}].
"""


def main(arguments: list[str]) -> int:
    """The verb; see ``--help``."""
    parser = config_parser("simulate", DESCRIPTION)
    parser.add_argument("--placement", type=Path, required=True, help="a file that plan wrote")
    parser.add_argument("--events", type=Path, help="faults, .json")
    parser.add_argument("--draw", type=int, help="of the traffic; 0 is what was searched with")
    parser.add_argument("--curves", type=Path, help="where to draw attainment curves, .svg")
    parser.add_argument("--page", type=Path, help="where to draw everything, .html")
    options = parser.parse_intermixed_args(arguments)
    config = config_of(options)
    check_writable(options.curves, options.page)
    placement = read_placement(options.placement)
    task = PlaceTask.of(config, profiles_here(config, _say))
    drawn = config.traffic.trace is None
    draw = int(drawn) if options.draw is None else options.draw
    judged = task.at(Change(draw=draw))
    events = read_events(options.events) if options.events else ()
    _say(f"{asked_for(judged)}\n{judged.checked(placement)}\n")
    calm = judged.outcome(placement)
    _say("\n".join(told(calm)))
    outcome = judged.outcome(placement, events) if events else calm
    if events:
        _say("\nwith faults\n" + "\n".join(faulty(calm, outcome, events)))
    found: tuple[Curve, ...] = ()
    if options.curves is not None or options.page is not None:
        found = curves(task, placement, draw, say=_say)
    if options.curves is not None:
        from recipes.place.view import curve_charts

        _write(options.curves, curve_charts(found))
        _say(f"curves: {options.curves}")
    if options.page is not None:
        from recipes.place.view import simulation_page

        _write(options.page, simulation_page(judged, outcome, found, events))
        _say(f"page: {options.page}")
    return 0


def told(outcome: AnyOutcome) -> Iterator[str]:
    """Attainment and latencies a model, utilisation a group; simulated."""
    yield f"attainment  {share(outcome.attainment)} of {outcome.workload.num_requests:,} requests"
    yield ""
    yield model_table(by_model(outcome))
    yield ""
    yield table(*group_rows(outcome))


def model_table(rows: Sequence[ModelServed]) -> str:
    """Rows as text; columns in which nothing happened are left out."""
    counts = {name: operator.attrgetter(name) for name in ("refused", "unplaced", "failed", "late")}
    seen = {name: count for name, count in counts.items() if any(map(count, rows))}
    return table(*model_rows(rows, seen))


def faulty(calm: AnyOutcome, outcome: AnyOutcome, events: Sequence[Event]) -> Iterator[str]:
    """What the faults cost."""
    lost = outcome.attainment - calm.attainment
    yield f"attainment  {share(outcome.attainment)} ({points(lost)})"
    counts = ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items() if count)
    yield f"requests    {counts}"
    yield ""
    cuts_s = [event.at_s for event in events]
    stretches = zip(by_time(calm, cuts_s), by_time(outcome, cuts_s), strict=True)
    rows = [
        [one.name, f"{one.requests:,}", share(one.attainment), share(two.attainment)]
        for one, two in stretches
    ]
    yield table(["arrived", "requests", "without faults", "with faults"], rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)
