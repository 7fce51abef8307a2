"""``python -m recipes.plan inference``: every way to serve a model on some devices."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from blocks.sched.profile import save_profile
from recipes import settings
from recipes.plan.config import PlanConfig
from recipes.plan.inference.config import InferenceConfig
from recipes.plan.inference.profile import profile_of
from recipes.plan.inference.search import plan_inference
from recipes.plan.inference.table import table
from recipes.plan.settings import cluster_of
from recipes.plan.writable import check_writable


def main(argv: Sequence[str]) -> int:
    """Plan, print the table, write the plan and the profile that placement reads."""
    parser = argparse.ArgumentParser(
        "python -m recipes.plan inference",
        description="Every way to serve a model on some devices, and what it takes there.",
        epilog=settings.described(InferenceConfig("llama:8b")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="llama:8b, decoder:FOLDER, or module:factory")
    settings.add_settings(parser, "fields of InferenceConfig, below")
    clusters = "a bundled cluster or a cluster file (default: %(default)s)"
    parser.add_argument("--cluster", default="8xH100", help=clusters)
    parser.add_argument("--out", type=Path, help="where to write the plan, .json")
    parser.add_argument("--profile", type=Path, help="where to write the profile, .profile")
    options = parser.parse_intermixed_args(argv)
    see = "recipes/plan/inference/config.py"
    model, texts = settings.in_any_order(options.model, options.settings)
    config = settings.override(InferenceConfig(model, options.cluster), texts, see=see)
    sizes = (config.num_nodes, config.num_devices)
    cluster = cluster_of(PlanConfig(config.model, config.cluster, *sizes))
    check_writable(options.out, options.profile)
    plan = plan_inference(config, cluster, note=lambda text: print(text, flush=True))
    print("\n".join(table(plan)))
    if options.out is not None:
        print(f"plan: {plan.write(options.out)}")
    if options.profile is not None:
        options.profile.parent.mkdir(parents=True, exist_ok=True)
        save_profile(profile_of(plan), options.profile)
        print(f"profile: {options.profile}")
    return 0
