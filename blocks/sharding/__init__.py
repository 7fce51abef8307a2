"""Meshes, placements and collectives; linear layers and losses cut over ranks.

Names that need torch are loaded when first asked for, so planners import this without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from blocks.sharding.cluster import (
    Cluster,
    Submesh,
    bundled_cluster,
    bundled_clusters,
    logical_meshes,
)
from blocks.sharding.collective_bytes import Collective, collective_bytes
from blocks.sharding.cost import AlphaBeta, CostModel, MeshCost
from blocks.sharding.cross_mesh import CrossMeshPlan, cross_mesh_s, plan_cross_mesh
from blocks.sharding.cut import Cut
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, OpNode, TensorValue
from blocks.sharding.op_rule import Factor, OpRule
from blocks.sharding.placement import (
    Partial,
    Placement,
    Replicate,
    Run,
    Shard,
    parse_placement,
    run_of,
)
from blocks.sharding.program import Counts, Program, count, lower
from blocks.sharding.repeat_forward import Repeated, first_name, repeat_forward
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.stage_graph import StageGraph, cut_graph
from blocks.sharding.strategy import (
    REPLICATE,
    Strategy,
    fits,
    local_sizes,
    strategies,
    strategy_of,
)

if TYPE_CHECKING:
    from blocks.sharding.collectives import (
        all_gather,
        all_reduce,
        all_to_all,
        identity,
        mask,
        narrow,
        reduce_scatter,
    )
    from blocks.sharding.cross_mesh.execute import execute_cross_mesh
    from blocks.sharding.cutting import cut_tensor, gather_cut, join_tensors, sum_shared
    from blocks.sharding.distributed import (
        DistributedGroup,
        axis_groups,
        make_device_mesh,
        torch_placements,
    )
    from blocks.sharding.fully_sharded import whole_parameters
    from blocks.sharding.group import Group, sum_in_order
    from blocks.sharding.linear import column_linear, enter, leave, row_linear
    from blocks.sharding.local import LocalGroup, run_local
    from blocks.sharding.replicated import sum_gradients
    from blocks.sharding.resharding import prepare_step, reshard, run_step
    from blocks.sharding.rule_audit import RankShare, audit_rule
    from blocks.sharding.vocabulary import vocab_cross_entropy, vocab_embedding

_WITH_TORCH = {
    "collectives": (
        "all_gather",
        "all_reduce",
        "all_to_all",
        "identity",
        "mask",
        "narrow",
        "reduce_scatter",
    ),
    "cross_mesh.execute": ("execute_cross_mesh",),
    "cutting": ("cut_tensor", "gather_cut", "join_tensors", "sum_shared"),
    "distributed": ("DistributedGroup", "axis_groups", "make_device_mesh", "torch_placements"),
    "fully_sharded": ("whole_parameters",),
    "group": ("Group", "sum_in_order"),
    "linear": ("column_linear", "enter", "leave", "row_linear"),
    "local": ("LocalGroup", "run_local"),
    "replicated": ("sum_gradients",),
    "resharding": ("prepare_step", "reshard", "run_step"),
    "rule_audit": ("RankShare", "audit_rule"),
    "vocabulary": ("vocab_cross_entropy", "vocab_embedding"),
}
_HOME = {name: module for module, names in _WITH_TORCH.items() for name in names}

__all__ = [
    "REPLICATE",
    "AlphaBeta",
    "Cluster",
    "Collective",
    "CostModel",
    "Counts",
    "CrossMeshPlan",
    "Cut",
    "DistributedGroup",
    "Factor",
    "Group",
    "LocalGroup",
    "Mesh",
    "MeshCost",
    "OpGraph",
    "OpNode",
    "OpRule",
    "Partial",
    "Placement",
    "Program",
    "RankShare",
    "Repeated",
    "Replicate",
    "Run",
    "Shard",
    "ShardingSpec",
    "StageGraph",
    "Step",
    "Strategy",
    "Submesh",
    "TensorValue",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "audit_rule",
    "axis_groups",
    "bundled_cluster",
    "bundled_clusters",
    "collective_bytes",
    "column_linear",
    "count",
    "cross_mesh_s",
    "cut_graph",
    "cut_tensor",
    "enter",
    "execute_cross_mesh",
    "first_name",
    "fits",
    "gather_cut",
    "identity",
    "join_tensors",
    "leave",
    "local_sizes",
    "logical_meshes",
    "lower",
    "make_device_mesh",
    "mask",
    "narrow",
    "parse_placement",
    "plan_cross_mesh",
    "plan_reshard",
    "prepare_step",
    "reduce_scatter",
    "repeat_forward",
    "reshard",
    "row_linear",
    "run_local",
    "run_of",
    "run_step",
    "strategies",
    "strategy_of",
    "sum_gradients",
    "sum_in_order",
    "sum_shared",
    "torch_placements",
    "vocab_cross_entropy",
    "vocab_embedding",
    "whole_parameters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
