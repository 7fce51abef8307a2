"""Tensors from one mesh to another, as data: who sends which part to whom.

``execute_cross_mesh`` and the wires need torch and are loaded when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from blocks.sharding.cross_mesh.balance import Balance
from blocks.sharding.cross_mesh.box import Box
from blocks.sharding.cross_mesh.check import check_holds
from blocks.sharding.cross_mesh.plan import CrossMeshPlan, Mode, Transfer
from blocks.sharding.cross_mesh.planning import plan_cross_mesh
from blocks.sharding.cross_mesh.seconds import cross_mesh_s

if TYPE_CHECKING:
    from blocks.sharding.cross_mesh.execute import execute_cross_mesh
    from blocks.sharding.cross_mesh.wire import DistributedWire, LocalWires, Message, Wire

_WITH_TORCH = {
    "DistributedWire": "wire",
    "LocalWires": "wire",
    "Message": "wire",
    "Wire": "wire",
    "execute_cross_mesh": "execute",
}

__all__ = [
    "Balance",
    "Box",
    "CrossMeshPlan",
    "DistributedWire",
    "LocalWires",
    "Message",
    "Mode",
    "Transfer",
    "Wire",
    "check_holds",
    "cross_mesh_s",
    "execute_cross_mesh",
    "plan_cross_mesh",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value
