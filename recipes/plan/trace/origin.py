"""Where a call of the joint graph comes from: module, line of code, forward or backward."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

from blocks.sharding.op_graph import Phase
from recipes.plan.trace.loss_module import LossModule

_SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NTH_CALL = re.compile(r"@\d+")


class Origin(NamedTuple):
    """module: its path, ``""`` for the whole; phase; source: ``file:line`` or empty."""

    module: str
    phase: Phase
    source: str


def note_origins(graph_module: fx.GraphModule) -> None:
    """Write the ``Origin`` of every call of a graph as it was captured to ``meta["origin"]``.

    A backward call comes from where its forward does; where a gradient of several readers is added
    up, from where the addend that came last does; where nothing is known, from where what it reads
    does.
    """
    found: dict[fx.Node, Origin] = {}
    forward_of: dict[int, Origin] = {}  # by the number autograd gave the operation
    for node in graph_module.graph.nodes:
        if node.op not in ("call_function", "get_attr"):
            continue
        phase: Phase = (
            "backward" if node.meta.get("partitioner_tag") == "is_backward" else "forward"
        )
        path = _module_path(node)
        number = node.meta.get("seq_nr", -1)
        source = _source(node.meta.get("stack_trace") or "")
        if path is None and phase == "backward":
            adds = node.meta.get("is_gradient_acc")
            origin = None if adds else forward_of.get(number)
            origin = origin or _of_latest(node, found)
            path = origin.module if origin else ""
            source = source or (origin.source if origin else "")
        found[node] = node.meta["origin"] = Origin(path or "", phase, source)
        if phase == "forward" and number not in forward_of:
            forward_of[number] = found[node]


def origins(graph_module: fx.GraphModule) -> dict[fx.Node, Origin]:
    """Of every call, as it was noted."""
    nodes = graph_module.graph.nodes
    return {node: node.meta["origin"] for node in nodes if node.op == "call_function"}


def _module_path(node: fx.Node) -> str | None:
    stack: Any = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return None
    path = list(stack.values())[-1][0]
    path = path if isinstance(path, str) else ""
    own = LossModule.PREFIX
    return _NTH_CALL.sub("", path).removeprefix(own) if path.startswith(own) else ""


def _of_latest(node: fx.Node, found: dict[fx.Node, Origin]) -> Origin | None:
    """Where the last of what a call reads comes from."""
    known = {one for one in node.all_input_nodes if one in found}
    return next((found[one] for one in reversed(found) if one in known), None) if known else None


def _source(trace: str) -> str:
    frames = _FRAME.findall(trace)
    own = [f"{file}:{line}" for file, line in frames if not file.startswith(_SKIPPED)]
    return own[-1] if own else ""
