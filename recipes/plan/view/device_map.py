"""``device_map``: the cluster with every device in the colour of its stage."""

from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.view.drawing import IDLE, box, stage_colour, svg, text

_CELL, _GAP, _TOP = 30, 4, 26


def device_map(plan: ParallelPlan, devices_per_node: int, *, max_nodes_wide: int = 4) -> str:
    """Nodes of devices; a device says its stage and its place on the stage's mesh.

    Args:
        devices_per_node: how many devices a node of the cluster has.
        max_nodes_wide: nodes beside one another.
    """
    num_nodes = -(-plan.cluster.size // devices_per_node)
    stage_of = {rank: at for at, stage in enumerate(plan.stages) for rank in stage.mesh.ranks}
    wide = min(num_nodes, max_nodes_wide)
    node_width = devices_per_node * (_CELL + _GAP) + 14
    rows = -(-num_nodes // wide)
    parts: list[str] = []
    for node in range(num_nodes):
        row, column = divmod(node, wide)
        x, y = column * node_width, _TOP + row * (_CELL + 22)
        parts.append(text(x, y - 6, f"node {node}", "muted"))
        last = min((node + 1) * devices_per_node, plan.cluster.size)
        for at, device in enumerate(range(node * devices_per_node, last)):
            left = x + at * (_CELL + _GAP)
            if device not in stage_of:
                parts.append(box(left, y, _CELL, _CELL, IDLE, f"device {device}: not used"))
                continue
            stage = stage_of[device]
            mesh = plan.stages[stage].mesh
            where = ", ".join(
                f"{axis} {c}" for axis, c in zip(mesh.axes, mesh.coordinates(device), strict=True)
            )
            colour = stage_colour(stage, len(plan.stages))
            tip = f"device {device}: stage {stage}; {where}"
            parts.append(box(left, y, _CELL, _CELL, colour, tip))
            parts.append(text(left + _CELL / 2, y + _CELL / 2 + 4, str(stage), "on", "middle"))
    height = _TOP + rows * (_CELL + 22) - 16
    return svg(wide * node_width, height, parts, "stages on the devices of the cluster")
