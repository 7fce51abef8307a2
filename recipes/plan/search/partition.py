"""``Partition``: layers to stages and stages to submeshes, within limits. Needs numpy."""

import dataclasses
from collections.abc import Mapping

from blocks._checks import check, fail
from blocks.pipeline import partition_mesh
from blocks.pipeline.inter_op import DoesNotFit, InterOpPlan, SubmeshShape, submeshes
from blocks.pipeline.view.scale import bytes_text
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.search.stage_options import OptionTables

EPSILON = 1e-3
"""Share by which the partition may miss the least closed formula; the bound is not touched."""

MAX_CELLS = 96


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The partition of the mesh, to be asked again with other limits.

    tables: what layers cost.
    """

    tables: OptionTables
    cluster: Cluster
    config: PlanConfig

    def best(
        self,
        caps: Mapping[str, float],
        *,
        max_stages: int | None = None,
        max_cells: int = MAX_CELLS,
        every_cut: bool = False,
    ) -> InterOpPlan:
        """
        Args:
            caps: bytes of a device by kind.
            max_cells: stretches of layers, where there are more layers: cuts between them first,
                then finer near those found.
            every_cut: whether the bound is to hold for cuts everywhere, too.

        Raises:
            ValueError: nothing keeps to the limits; says what is short, and by how much.
        """
        kinds = _kinds(self.cluster)
        try:
            return partition_mesh(
                self.tables.sums.__getitem__,
                len(self.cluster.nodes),
                self.cluster.nodes[0].num_devices,
                num_microbatches=tuple(self.tables.sums),
                memory_cap_bytes=dict(caps) if kinds else min(caps.values()),
                schedules=self.config.schedules.split(","),
                kinds=kinds,
                idle_devices=self.config.idle_devices,
                max_stages=max_stages or self.config.max_stages,
                epsilon=EPSILON,
                max_cells=max_cells,
                bound_every_cut=every_cut,
            )
        except DoesNotFit as error:
            if error.limit != "memory":
                raise
            short = error.shortfall_bytes
            hint = (
                f"{bytes_text(short)} too few; add devices, raise num_microbatches, allow "
                "recompute, or lower batch_size or seq_len"
            )
            needed = {kind: size + short for kind, size in caps.items()}
            raise fail("memory of a device", _text(needed), _text(caps), hint) from error


def _text(caps: Mapping[str, float]) -> str:
    """Of every kind, where there are several."""
    if len(set(caps.values())) == 1:
        return bytes_text(min(caps.values()))
    return " and ".join(f"{bytes_text(size)} ({kind})" for kind, size in caps.items())


def memory_bytes(cluster: Cluster, config: PlanConfig) -> dict[str, float]:
    """What a plan may use of a device, by kind."""
    used = {node.kind for node in cluster.nodes}
    kinds = [kind for kind in cluster.kinds if kind.name in used]
    if config.memory_gib is not None:
        return {kind.name: config.memory_gib * 2**30 for kind in kinds}
    return {kind.name: float(kind.memory_bytes) for kind in kinds}


def submesh_shapes(cluster: Cluster, config: PlanConfig) -> tuple[SubmeshShape, ...]:
    """Shapes of submeshes to look at."""
    sizes = {node.num_devices for node in cluster.nodes}
    hint = "plan for its equal nodes alone"
    check(len(sizes) == 1, "devices of the nodes", "as many in each", sorted(sizes), hint)
    kinds = _kinds(cluster)
    shapes = submeshes(len(cluster.nodes), sizes.pop(), kinds=kinds, only_powers_of_two=True)
    if config.max_stages == 1 and not config.idle_devices and not kinds:
        shapes = tuple(shape for shape in shapes if shape.size == cluster.num_devices)
    if config.max_stage_devices is not None:
        shapes = tuple(shape for shape in shapes if shape.size <= config.max_stage_devices)
    return shapes


def _kinds(cluster: Cluster) -> tuple[str, ...]:
    """Of every node, where there are several."""
    kinds = tuple(node.kind for node in cluster.nodes)
    return kinds if len(set(kinds)) > 1 else ()
