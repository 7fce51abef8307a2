"""What a plan runs on, as data: kinds of devices, links, nodes; submeshes of them. No torch."""

from blocks.sharding.cluster.bundled import bundled_cluster, bundled_clusters
from blocks.sharding.cluster.cluster import Cluster, Node, SlowPair
from blocks.sharding.cluster.curve import Curve
from blocks.sharding.cluster.device_kind import DeviceKind
from blocks.sharding.cluster.fit import Line, fit_line, held_out_errors, never_falling
from blocks.sharding.cluster.link import Clock, CollectiveTable, Link, Moving
from blocks.sharding.cluster.submesh import Submesh, crossing_axes, logical_meshes, mesh_shapes
from blocks.sharding.cluster.tiles import Tiles

__all__ = [
    "Clock",
    "Cluster",
    "CollectiveTable",
    "Curve",
    "DeviceKind",
    "Line",
    "Link",
    "Moving",
    "Node",
    "SlowPair",
    "Submesh",
    "Tiles",
    "bundled_cluster",
    "bundled_clusters",
    "crossing_axes",
    "fit_line",
    "held_out_errors",
    "logical_meshes",
    "mesh_shapes",
    "never_falling",
]
