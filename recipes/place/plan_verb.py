"""``python -m recipes.place plan``: which models to host where, how good that is, what binds."""

from collections.abc import Iterator
from pathlib import Path

from recipes.place.arguments import config_of, config_parser
from recipes.place.planning import PlaceTask, write_placement
from recipes.place.planning.asked_for import asked_for
from recipes.place.planning.planned import Planned, planned
from recipes.place.planning.profiles_here import profiles_here
from recipes.place.planning.tables import points, share, table
from recipes.plan.writable import check_writable

MOST = 4
"""Models that are named with what they miss."""
DESCRIPTION = """Search for a placement of the models of CONFIG on its devices.

Every candidate is judged by simulating the config's traffic on it. What is found is printed beside
an upper bound, selective replication, round robin and swapping, with what would change it.
"""


def main(arguments: list[str]) -> int:
    """The verb; see ``--help``."""
    parser = config_parser("plan", DESCRIPTION)
    parser.add_argument("--out", type=Path, help="where to write the placement, .json")
    parser.add_argument("--page", type=Path, help="where to draw it, .html")
    parser.add_argument("--quick", action="store_true", help="do not ask what would change it")
    options = parser.parse_intermixed_args(arguments)
    config = config_of(options)
    check_writable(options.out, options.page)
    task = PlaceTask.of(config, profiles_here(config, _say))
    _say(asked_for(task))
    found = planned(task, _say, quick=options.quick)
    _say("\n" + "\n".join(told(found)))
    if options.out is not None:
        _say(f"\nplacement: {write_placement(options.out, found.plan)}")
    if options.page is not None:
        from recipes.place.view import plan_page

        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(plan_page(found), encoding="utf-8")
        _say(f"page: {options.page}")
    return 0


def told(found: Planned) -> Iterator[str]:
    """What was found, line by line."""
    plan, task = found.plan, found.task
    fresh = found.ways[0].fresh
    yield f"attainment  {share(plan.attainment)} of requests in time (simulated)"
    yield f"            {share(fresh)} on another draw of the traffic"
    bound = f"{share(plan.bound)} are possible at most, a gap of {points(plan.gap)[1:]}"
    unbounded = "; what generates counts as served in it" if task.generates else ""
    yield f"bound       {bound}{unbounded}"
    if found.missed:
        shown = ", ".join(f"{model} {count:,}" for model, count in found.missed[:MOST])
        others = f" and {len(found.missed) - MOST} more models" if len(found.missed) > MOST else ""
        yield f"missed      {shown}{others}"
    yield f"searched    {plan.evaluated:,} placements, best by {plan.found_by}"
    yield ""
    yield str(plan.placement)
    yield from (f"! {line}" for line in found.unhosted)
    yield ""
    rows = [[way.name, share(way.searched), share(way.fresh), way.note] for way in found.ways]
    width = max(len(way.note) for way in found.ways)
    rows = [[*row[:3], row[3].ljust(width)] for row in rows]
    yield table(["", "in time", "another draw", ""], rows)
    yield ""
    yield f"carries     {found.carries_text} times this traffic with 99 % in time"
    yield f"binds       {found.binds}"
    yield from (
        f"what if     {one.change}: {share(one.attainment)} ({points(one.gain)})"
        for one in found.what_ifs
    )


def _say(line: str) -> None:
    print(line, flush=True)
