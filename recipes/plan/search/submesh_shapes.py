"""``submesh_shapes``: the submeshes that stages may have. No torch."""

from blocks._checks import check
from blocks.pipeline.inter_op import SubmeshShape, submeshes
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.search.no_plan import check_devices


def submesh_shapes(
    cluster: Cluster, config: PlanConfig, num_layers: int
) -> tuple[SubmeshShape, ...]:
    """Shapes of submeshes to look at.

    Raises:
        ValueError: nodes of different numbers of devices; stages that cannot use all devices.
    """
    sizes = {node.num_devices for node in cluster.nodes}
    hint = "plan for its equal nodes alone"
    check(len(sizes) == 1, "devices of the nodes", "as many in each", sorted(sizes), hint)
    kinds = kinds_of(cluster)
    shapes = submeshes(len(cluster.nodes), sizes.pop(), kinds=kinds, only_powers_of_two=True)
    if config.max_stage_devices is not None:
        shapes = tuple(shape for shape in shapes if shape.size <= config.max_stage_devices)
    check_devices(shapes, cluster, config, num_layers)
    if config.max_stages == 1 and not config.idle_devices and not kinds:
        shapes = tuple(shape for shape in shapes if shape.size == cluster.num_devices)
    return shapes


def kinds_of(cluster: Cluster) -> tuple[str, ...]:
    """Of every node, where there are several."""
    kinds = tuple(node.kind for node in cluster.nodes)
    return kinds if len(set(kinds)) > 1 else ()
