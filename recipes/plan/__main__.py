"""Plan the training of a model on a cluster.

python -m recipes.plan llama:8b --cluster 8xH100 num_nodes=8 --out out/plan.json
python -m recipes.plan my.package:factory --cluster my-cluster.json batch_size=512
python -m recipes.plan explain out/plan.json            # why every choice
python -m recipes.plan pin out/plan.json 'lm_head.weight=S(0)R'    # fix this, solve the rest
python -m recipes.plan whatif out/plan.json num_nodes=16           # what would change
python -m recipes.plan diff out/plan.json out/other.json
python -m recipes.plan show out/plan.json --out out/plan.html
python -m recipes.plan run out/plan.json --how forks --compare     # a few steps as planned
python -m recipes.plan calibrate --out my-cluster.json             # measure this machine
python -m recipes.plan inference llama:8b --profile out/llama.profile  # every way to serve it

MODEL is a family and size (recipes.plan.families) or package.module:factory, a function from the
rows of a microbatch to (module, args, kwargs) of a module that returns a loss. Settings are fields
of PlanConfig (config.py). Every verb has a --help of its own.
"""

import argparse
import importlib
import sys
import textwrap
from pathlib import Path

from blocks.sharding import bundled_clusters
from recipes.plan.config import PlanConfig
from recipes.plan.settings import override
from recipes.plan.verbs import parser_of, plan
from recipes.settings import add_settings, described, in_any_order

VERBS = ("explain", "diff", "pin", "whatif", "show", "run")
ELSEWHERE = {"calibrate": "recipes.plan.calibrate", "inference": "recipes.plan.inference"}
"""Verbs with a ``main(argv)`` of their own."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] and given[0] in ELSEWHERE:
            return importlib.import_module(ELSEWHERE[given[0]]).main(given[1:]) or 0
        if given[:1] and given[0] in VERBS:
            options = parser_of(given[0]).parse_intermixed_args(given[1:])
            options.work(options)
        else:
            run(given)
    except Exception as error:
        notes = getattr(error, "__notes__", [])  # where the user's module failed
        if not (notes or isinstance(error, (ValueError, OSError))):
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        print("; ".join([f"error: {kind}{_first_line(error)}", *notes]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _epilog() -> str:
    """What settings, clusters and families there are."""
    from recipes.plan.families import families

    settings = described(PlanConfig("llama:8b"))
    names = textwrap.fill(", ".join(families()), 98, break_on_hyphens=False)
    clusters = ", ".join(bundled_clusters())
    return f"{settings}\n\nbundled clusters: {clusters}\n\nmodels:\n\n{names}"


def run(given: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m recipes.plan",
        description=__doc__,
        epilog=_epilog() if {"-h", "--help"} & {*given} else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="llama:8b, or module:factory")
    add_settings(parser, "fields of PlanConfig, below")
    clusters = "a bundled cluster or a cluster file (default: %(default)s)"
    parser.add_argument("--cluster", default="8xH100", help=clusters)
    parser.add_argument("--out", type=Path, help="where to write the plan")
    parser.add_argument("--page", type=Path, help="where to draw it, .html")
    options = parser.parse_intermixed_args(given)
    model, settings = in_any_order(options.model, options.settings)
    config = override(PlanConfig(model, options.cluster), settings)
    plan(config, options.out, options.page)


if __name__ == "__main__":
    sys.exit(main())
