"""The whole service of a config, put together; nothing of it runs yet."""

import logging
from collections.abc import Mapping
from typing import Literal

from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.config import PlaceConfig
from recipes.place.engine_settings import engine_settings
from recipes.place.fleet import Capacity, Desk, Devices, Fleet, Router
from recipes.place.fleet.drift import Traffic
from recipes.place.fleet.fleet import Tell
from recipes.place.fleet.keeper import Keeper
from recipes.place.fleet.replanner import Replanner
from recipes.place.fleet.told_state import told_state
from recipes.place.front.launch import Launcher, Launchpad
from recipes.place.front.lobby import Lobby
from recipes.place.front.metrics import FrontMetrics
from recipes.place.front.model import front_model
from recipes.place.group import GroupHandle
from recipes.serve.config import ServerConfig
from recipes.serve.page import RecentEvents

log = logging.getLogger("recipes.place")


def telling(events: RecentEvents) -> Tell:
    """Writes what happens to the page's events and to the log of the process."""

    def tell(kind: Literal["good", "bad", "note"], text: str) -> None:
        events.add(kind, text)
        log.log(logging.WARNING if kind == "bad" else logging.INFO, "%s", text)

    return tell


def _handle_on(fleet: Fleet, devices: Devices) -> GroupHandle | None:
    group = fleet.groups.get(devices)
    return None if group is None else group.handle


def first_of(workload: Workload, most: int = 400) -> Workload:
    """Its first requests, for a search that must not take long."""
    if workload.num_requests <= most:
        return workload
    return workload.slice(0.0, float(workload.arrival_s[most]))


def build_lobby(
    config: PlaceConfig,
    profiles: Mapping[str, Profile],
    placement: Placement,
    server: ServerConfig,
    launcher: Launcher,
    planned: Workload | None = None,
) -> Lobby:
    """A door behind which the placement is brought about once it runs.

    Args:
        planned: traffic to go by in searches until enough was seen.

    Raises:
        ValueError: a model that cannot be served.
    """
    serving = config.serving
    models = [front_model(config, model) for model in config.models]
    events = RecentEvents()
    least = {model.name: model.kv_tokens for model in config.models}
    size = config.engine.block_size
    capacity = Capacity(profiles, config.cluster.memory_bytes, least, size)
    router = Router(engine_settings(config.engine), serving.slack)
    fleet = Fleet(
        placement,
        capacity,
        config.cluster.num_devices,
        router,
        wanted_s=serving.window_s,
        least_stay_s=serving.least_stay_s,
        max_restarts=serving.max_restarts,
        given_up_s=serving.given_up_s,
        tell=telling(events),
    )
    router.look = told_state(router, lambda devices: _handle_on(fleet, devices))
    traffic = Traffic([model.name for model in models], serving.window_s)
    desk = Desk(fleet, traffic)
    pad = Launchpad(config, launcher)
    keeper = Keeper(
        fleet,
        pad.start,
        {model.name: str(model.folder) for model in models},
        start_s=serving.start_s,
        drain_s=serving.drain_s,
        lost_devices=launcher.lost_devices,
    )
    replanner = Replanner(
        keeper,
        traffic,
        settings=engine_settings(config.engine),
        slack=serving.slack,
        bytes_per_s=serving.load_bytes_per_s,
        least_gain=serving.least_gain,
        every_s=serving.replan_every_s,
        devices_per_node=config.cluster.devices_per_node,
        planned=planned,
    )
    return Lobby(
        server,
        models,
        desk,
        keeper,
        FrontMetrics(fleet, serving.window_s),
        events,
        load_wait_s=serving.load_wait_s,
        node_of=launcher.node_of,
        pad=pad,
        replanner=replanner,
    )
