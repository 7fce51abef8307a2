"""Where a call of the joint graph comes from: module, line of code, forward or backward."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

from blocks.sharding.op_graph import Phase
from recipes.plan.trace.editing import is_tensor
from recipes.plan.trace.loss_module import LossModule

_SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NTH_CALL = re.compile(r"@\d+")


class Origin(NamedTuple):
    """module: its path, ``""`` for the whole; phase; source: ``file:line`` or empty."""

    module: str
    phase: Phase
    source: str


def origins(graph_module: fx.GraphModule) -> dict[fx.Node, Origin]:
    """Of every node. A backward call comes from where its forward does; where a gradient of
    several readers is added up, from where the addend that came last does.
    """
    found: dict[fx.Node, Origin] = {}
    forward_of: dict[int, Origin] = {}  # by the number autograd gave the operation
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        phase: Phase = (
            "backward" if node.meta.get("partitioner_tag") == "is_backward" else "forward"
        )
        path = _module_path(node)
        number = node.meta.get("seq_nr", -1)
        source = _source(node.meta.get("stack_trace") or "")
        if path is None and phase == "backward":
            origin = _of_addends(node, found) or forward_of.get(number)
            path = origin.module if origin else ""
            source = source or (origin.source if origin else "")
        found[node] = Origin(path or "", phase, source)
        if phase == "forward" and number not in forward_of:
            forward_of[number] = found[node]
    return found


def _module_path(node: fx.Node) -> str | None:
    stack: Any = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return None
    path = list(stack.values())[-1][0]
    path = path if isinstance(path, str) else ""
    own = LossModule.PREFIX
    return _NTH_CALL.sub("", path).removeprefix(own) if path.startswith(own) else ""


def _of_addends(node: fx.Node, found: dict[fx.Node, Origin]) -> Origin | None:
    """For a sum that autograd makes itself: where its latest addend comes from."""
    if not node.meta.get("is_gradient_acc"):
        return None
    known = [one for one in node.all_input_nodes if is_tensor(one) and one in found]
    order = list(found)  # found in the order they run in
    return found[max(known, key=order.index)] if known else None


def _source(trace: str) -> str:
    frames = _FRAME.findall(trace)
    own = [f"{file}:{line}" for file, line in frames if not file.startswith(_SKIPPED)]
    return own[-1] if own else ""
