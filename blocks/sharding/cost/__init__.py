"""Seconds of collectives, resharding and operations on a mesh. Needs no torch."""

from blocks.sharding.cost.alpha_beta import ALPA_TIES, AlphaBeta
from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.cost.mesh_cost import MeshCost
from blocks.sharding.cost.step_bytes import QuickStep, reshard_steps, sent_bytes

__all__ = [
    "ALPA_TIES",
    "AlphaBeta",
    "CostModel",
    "MeshCost",
    "QuickStep",
    "reshard_steps",
    "sent_bytes",
]
