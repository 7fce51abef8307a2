"""``Partition``: layers to stages and stages to submeshes, within limits. Needs numpy."""

import dataclasses
from collections.abc import Mapping

from blocks.pipeline import partition_mesh
from blocks.pipeline.inter_op import InterOpPlan
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.search.stage_options import OptionTables
from recipes.plan.search.submesh_shapes import kinds_of

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
            DoesNotFit: nothing keeps to the limits.
        """
        kinds = kinds_of(self.cluster)
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


def memory_bytes(cluster: Cluster, config: PlanConfig) -> dict[str, float]:
    """What a plan may use of a device, by kind."""
    used = {node.kind for node in cluster.nodes}
    kinds = [kind for kind in cluster.kinds if kind.name in used]
    if config.memory_gib is not None:
        return {kind.name: config.memory_gib * 2**30 for kind in kinds}
    return {kind.name: float(kind.memory_bytes) for kind in kinds}
