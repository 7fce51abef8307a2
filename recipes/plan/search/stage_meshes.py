"""``stage_meshes``: the logical meshes that a stage's devices may form. No torch."""

from blocks.pipeline.inter_op import SubmeshShape
from blocks.sharding import Cluster, Mesh

AXES = ("x", "y")
"""Names of the axes of a stage's mesh; what each is for is what the plan decides."""


def stage_meshes(cluster: Cluster, shape: SubmeshShape, max_axes: int) -> tuple[Mesh, ...]:
    """Logical meshes on the first devices of a shape's kind: one axis, and every two whose inner
    one is inside of a host.

    On one host, where all pairs of devices are joined alike, the order of the axes means nothing
    and the longer one comes first.
    """
    of_kind = [at for at, node in enumerate(cluster.nodes) if shape.kind in ("", node.kind)]
    inside = shape.num_devices
    hosts = of_kind[: shape.num_hosts]
    devices = tuple(device for host in hosts for device in cluster.devices_of(host)[:inside])
    found = [Mesh(AXES[:1], (shape.size,), devices)]
    for inner in range(2, inside + 1):
        outer = shape.size // inner
        if max_axes < 2 or inside % inner or outer < 2:
            continue
        if shape.num_hosts > 1 or outer >= inner:
            found.append(Mesh(AXES, (outer, inner), devices))
    return tuple(found)
