"""``server_state``: the ``ClusterState`` of a server of one model."""

import socket

from recipes.serve.metrics import EngineStats
from recipes.serve.page.recent_requests import RecentRequests
from recipes.serve.page.state import ClusterState, GroupView, ModelOnGroup


def server_state(
    model: str,
    stats: EngineStats,
    recent: RecentRequests,
    *,
    uptime_s: float,
    is_alive: bool,
    draining: bool = False,
    kv_tokens: int | None = None,
    weight_bytes: int | None = None,
    tp: int = 1,
    pp: int = 1,
) -> ClusterState:
    """One group that hosts one model.

    Args:
        model: its name. stats: of its engine. recent: what became of its requests.
        is_alive: whether the engine's thread runs. draining: whether the server is going down.
    """
    state = "draining" if draining else "ready" if is_alive else "stopped"
    node = socket.gethostname() or "local"
    replica = ModelOnGroup(
        model,
        "ready" if is_alive else "failed",
        stats.num_running,
        stats.num_waiting,
        stats.kv_usage,
        kv_tokens,
        weight_bytes,
    )
    group = GroupView("0", tuple(range(tp * pp)), node, f"{tp} x {pp}", state, (replica,))
    return ClusterState(
        f"llm-blocks serves {model}",
        uptime_s,
        recent.window_s,
        (group,),
        tuple(recent.models([model], {model: stats.num_running + stats.num_waiting}).values()),
        recent.history(),
    )
