"""Plans of small hand-made models, searched in a process of their own.

There annotations are not executed, which makes the solver's loops many times slower.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from blocks.sharding import Cluster, bundled_cluster
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.parallel_plan import ParallelPlan
from tests.plan.graphs import mlp

ROOT = Path(__file__).parents[2]
MODEL = {"num_layers": 6, "width": 1024}


def chain_of(rows: int, num_layers: int = 6, width: int = 1024) -> LayerChain:
    return LayerChain.of(mlp(num_layers, batch=rows, width=width))


def cluster_of(num_nodes: int = 1) -> Cluster:
    return bundled_cluster("p3.16xlarge", num_nodes=num_nodes, num_devices=4)


def mixed(kinds: str = "sb") -> Cluster:
    """Nodes of small and of big devices, by their first letters.

    The big ones are three times as fast; the small ones hold 80 MiB.
    """
    two = cluster_of(2)
    small = dataclasses.replace(two.kinds[0], name="small", memory_bytes=80 * 2**20)
    faster = {dtype: 3 * flops for dtype, flops in small.peak_flops.items()}
    big = dataclasses.replace(
        small,
        name="big",
        peak_flops=faster,
        memory_bytes=32 * 2**30,
        memory_bytes_per_s=3 * small.memory_bytes_per_s,
    )
    nodes = tuple(two.nodes[0]._replace(kind={"s": "small", "b": "big"}[k]) for k in kinds)
    return dataclasses.replace(two, kinds=(small, big), nodes=nodes)


def search_all(cases: list[dict[str, Any]]) -> list[ParallelPlan | str]:
    """A plan for every case, or the message of the error.

    A case holds fields of ``PlanConfig``, and those of ``MODEL`` with ``traced_layers`` for a
    model that was traced with fewer, and ``kinds`` for the nodes of ``mixed``.
    """
    code = "from tests.plan.searching import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    return [one if isinstance(one, str) else ParallelPlan.from_json(one) for one in found]


def main() -> None:
    print(json.dumps([_search(dict(case)) for case in json.loads(sys.stdin.read())]))


def _search(case: dict[str, Any]) -> Any:
    from recipes.plan.search import search

    num_layers, width = (case.pop(name, default) for name, default in MODEL.items())
    traced = case.pop("traced_layers", num_layers)
    kinds = case.pop("kinds", "")
    settings = {"batch_size": 64, "workers": 1, "microbatch_choices": 3, **case}
    config = PlanConfig("mlp", "p3.16xlarge", num_devices=4, **settings)

    def chain(rows: int) -> LayerChain:
        return LayerChain.of(mlp(traced, batch=rows, width=width), num_layers=num_layers)

    try:
        return search(chain, mixed(kinds) if kinds else cluster_of(), config).plan.to_json()
    except ValueError as error:
        return str(error)
