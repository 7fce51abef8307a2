"""What ``python -m recipes.plan`` does: plan, explain, diff, pin, whatif, show, run."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks._checks import check
from recipes.plan.config import PlanConfig
from recipes.plan.diff import diff
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.settings import check_cluster, cluster_of, override
from recipes.plan.view.picture import picture
from recipes.plan.writable import check_writable
from recipes.settings import in_any_order


def plan(config: PlanConfig, out: Path | None, page: Path | None = None) -> ParallelPlan:
    """Search, print the plan, write it."""
    check_writable(out, page)
    found = _searched(config)
    _show(found, config, out, page)
    return found


def explain_plan(path: Path) -> None:
    """Print why every choice."""
    from recipes.plan.model import layers_by_rows
    from recipes.plan.view.explain import explain

    read, config = _read_here(path)
    rows = config.rows(read.num_microbatches)
    chain = layers_by_rows(config, _say)(rows)
    print("\n".join(explain(read, chain, cluster_of(config))))


def diff_plans(first: Path, second: Path) -> None:
    """Print what two plans do otherwise."""
    lines = diff(ParallelPlan.read(first), ParallelPlan.read(second))
    print("\n".join(lines) if lines else "the plans do the same")


def pin(path: Path, pins: Sequence[str], out: Path | None) -> None:
    """Plan again with some choices fixed, and print what that changes."""
    first, pins = in_any_order(str(path), pins)
    before = ParallelPlan.read(Path(first))
    config = PlanConfig.from_json(before.settings)
    for text in pins:
        check("=" in text, "pin", "NAME=PLACEMENTS, such as 'head.weight=S(0)R'", repr(text))
    every = [*filter(None, config.pins.split(";")), *pins]
    again(before, dataclasses.replace(config, pins=";".join(every)), out)


def what_if(path: Path, settings: list[str], out: Path | None) -> None:
    """Plan again for another cluster, batch or limit, and print what that changes."""
    first, settings = in_any_order(str(path), settings)
    before = ParallelPlan.read(Path(first))
    again(before, override(PlanConfig.from_json(before.settings), settings), out)


def again(before: ParallelPlan, config: PlanConfig, out: Path | None) -> None:
    """Plan, and print the differences from a plan there is."""
    check_writable(out)
    found = _searched(config)
    lines = diff(before, found)
    print("\n".join(lines) if lines else "the plan stays the same")
    if out is not None:
        print(f"plan: {found.write(out)}")


def show(path: Path, out: Path | None) -> None:
    """Print a plan, or draw it as a page."""
    check_writable(out)
    read, config = _read_here(path)
    _show(read, config, None, out)


def run(path: Path, num_steps: int, seed: int, how: Any, compare: bool) -> None:
    """Train a few steps as a plan has them."""
    from recipes.plan.execute.run_plan import run_plan

    found, _ = _read_here(path)
    run_plan(found, num_steps=num_steps, seed=seed, how=how, compare=compare, say=_say)


def _read_here(path: Path) -> tuple[ParallelPlan, PlanConfig]:
    """A plan and its settings, if the cluster they name is still the one it was made for."""
    read = ParallelPlan.read(path)
    config = PlanConfig.from_json(read.settings)
    check_cluster(read, cluster_of(config))
    return read, config


def _searched(config: PlanConfig) -> ParallelPlan:
    from recipes.plan.model import layers_by_rows
    from recipes.plan.pins import parse_pins
    from recipes.plan.search import search

    cluster = cluster_of(config)
    parse_pins(config.pins)  # before the model is traced
    return search(layers_by_rows(config, _say), cluster, config, note=_say).plan


def _show(found: ParallelPlan, config: PlanConfig, out: Path | None, page: Path | None) -> None:
    cluster = cluster_of(config)
    per_node = cluster.nodes[0].num_devices
    print(picture(found, per_node))
    if out is not None:
        print(f"plan: {found.write(out)}, {out.stat().st_size / 1e3:.0f} kB")
    if page is not None:
        from recipes.plan.search.partition import memory_bytes
        from recipes.plan.view import plan_page

        memory = min(memory_bytes(cluster, config).values())
        page.parent.mkdir(parents=True, exist_ok=True)
        drawn = plan_page(found, devices_per_node=per_node, memory_bytes=memory)
        page.write_text(drawn, encoding="utf-8")
        print(f"page: {page}")


def _say(text: str) -> None:
    print(text, flush=True)


WORDS = {
    "explain": "Why every choice: what it costs against the next best, most at stake first.",
    "diff": "What the second plan does otherwise.",
    "pin": "Plan again with some choices fixed, and say what that changes. A pin is the name of a "
    "parameter or operation as plans have it, * for any number, and a placement for each axis of a "
    "stage's mesh: 'head.weight=S(0)R' cuts rows over the first axis and repeats them over the "
    "second; only meshes of as many axes are looked at.",
    "whatif": "Plan again with other settings, which `python -m recipes.plan --help` lists, and "
    "say what that changes.",
    "show": "Print a plan, or draw it as a page.",
    "run": "Train a few steps as planned, on inputs that the factory draws and weights of a seed.",
}
"""What verbs do."""


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb and what to call with its options."""
    parser = argparse.ArgumentParser(f"python -m recipes.plan {verb}", description=WORDS[verb])
    if verb == "diff":
        parser.add_argument("first", type=Path, help="a file that recipes.plan wrote")
        parser.add_argument("second", type=Path, help="another one")
        parser.set_defaults(work=lambda o: diff_plans(o.first, o.second))
        return parser
    parser.add_argument("plan", type=Path, help="a file that recipes.plan wrote")
    if verb == "explain":
        parser.set_defaults(work=lambda o: explain_plan(o.plan))
    elif verb == "show":
        parser.add_argument("--out", type=Path, help="where to draw it, .html")
        parser.set_defaults(work=lambda o: show(o.plan, o.out))
    elif verb == "run":
        ways = ("threads", "forks", "torchrun")
        parser.add_argument(
            "--how",
            choices=ways,
            default="threads",
            help="what stands for a device (default: threads)",
        )
        parser.add_argument("--steps", type=int, default=3, help="default: 3")
        parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
        parser.add_argument(
            "--compare",
            action="store_true",
            help="do the same on one device, and say how far losses are apart",
        )
        parser.set_defaults(work=lambda o: run(o.plan, o.steps, o.seed, o.how, o.compare))
    elif verb == "pin":
        parser.add_argument("pins", nargs="+", metavar="NAME=PLACEMENTS", help="as above")
        parser.add_argument("--out", type=Path, help="where to write the new plan")
        parser.set_defaults(work=lambda o: pin(o.plan, o.pins, o.out))
    else:
        assert verb == "whatif", verb
        parser.add_argument("settings", nargs="+", metavar="key=value", help="num_nodes=16, say")
        parser.add_argument("--out", type=Path, help="where to write the new plan")
        parser.set_defaults(work=lambda o: what_if(o.plan, o.settings, o.out))
    return parser
