"""What ``/cluster`` answers."""

from collections.abc import Callable, Mapping

import msgspec

from recipes.place.fleet import Desk, Devices, LiveGroup, Slo
from recipes.serve.page import (
    ClusterState,
    GroupView,
    ModelOnGroup,
    RecentEvents,
    RecentRequests,
)


def cluster_view(
    desk: Desk,
    slos: Mapping[str, Slo],
    recent: RecentRequests,
    events: RecentEvents,
    uptime_s: float,
    node_of: Callable[[int], str],
) -> ClusterState:
    """Groups that are there and those that should be, models, and the last minutes' requests.

    Args:
        slos: of every model that may be asked for, in the order they are shown.
        node_of: the name of the machine that a device lies on.
    """
    fleet = desk.fleet
    in_flight = dict.fromkeys(slos, 0)
    for seat in desk.router.seats():
        in_flight[seat.model] = in_flight.get(seat.model, 0) + seat.num_live
    views = recent.models(slos, in_flight)
    models = tuple(
        msgspec.structs.replace(
            view,
            slo_ttft_s=_limit(slos[name].ttft_s) if name in slos else None,
            slo_tpot_s=_limit(slos[name].tpot_s) if name in slos else None,
        )
        for name, view in views.items()
    )

    def node(devices: Devices) -> str:
        return ", ".join(dict.fromkeys(map(node_of, sorted(devices))))

    groups = [_group(group, node(group.devices)) for group in fleet.groups.values()]
    for wanted in fleet.desired.groups:
        if wanted.devices not in fleet.groups:
            lost = fleet.lost.intersection(wanted.devices)
            state = "lost" if lost else "waiting"
            shape = str(wanted.configuration)
            groups.append(
                GroupView(
                    "-", wanted.devices, node(wanted.devices), shape, state, (), "to be started"
                )
            )
    return ClusterState(
        f"llm-blocks serves {len(slos)} models",
        uptime_s,
        recent.window_s,
        tuple(sorted(groups, key=lambda group: group.devices)),
        models,
        recent.history(),
        events.view(),
    )


def _group(group: LiveGroup, node: str) -> GroupView:
    told = {} if group.handle is None else group.handle.state.models
    replicas = []
    for model, replica in group.replicas.items():
        state = told.get(model)
        replicas.append(
            ModelOnGroup(
                model,
                replica.state,
                0 if state is None else state.num_running,
                0 if state is None else state.num_waiting,
                None if state is None else state.stats.kv_usage,
                replica.kv_tokens,
                replica.weight_bytes,
            )
        )
    shape = str(group.configuration)
    state = {"stopping": "draining"}.get(group.state, group.state)
    return GroupView(group.name, group.devices, node, shape, state, tuple(replicas))


def _limit(seconds: float) -> float | None:
    return seconds if seconds < float("inf") else None
