"""A request of ``recipes.plan`` from ``key=value`` texts, and the cluster it names."""

from collections.abc import Sequence
from pathlib import Path

from blocks._checks import check
from blocks.sharding import Cluster, bundled_cluster, bundled_clusters
from recipes import settings
from recipes.plan.config import PlanConfig
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan


def override(config: PlanConfig, texts: Sequence[str]) -> PlanConfig:
    """``recipes.settings.override`` of a request."""
    return settings.override(config, texts, see="recipes/plan/config.py")


def cluster_of(config: PlanConfig) -> Cluster:
    """The cluster a request names: a bundled one or a file.

    Raises:
        ValueError: neither.
    """
    if config.cluster in bundled_clusters():
        found = bundled_cluster(config.cluster)
    else:
        hint = f"or one of {', '.join(bundled_clusters())}"
        check(Path(config.cluster).is_file(), "cluster", "a cluster file", config.cluster, hint)
        found = Cluster.load(Path(config.cluster))
    if config.num_nodes is None and config.num_devices is None:
        return found
    return found.resized(num_nodes=config.num_nodes, num_devices=config.num_devices)


def check_cluster(plan: ParallelPlan, cluster: Cluster) -> None:
    """
    Raises:
        ValueError: another cluster than the plan was made for, or the same one changed since.
    """
    here = Fingerprint(cluster.name, cluster.fingerprint(), cluster.num_devices)
    plan.cluster.check_same("cluster", here)
