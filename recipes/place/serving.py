"""``Serving``: what a user says of the running service. Needs no torch."""

import dataclasses
import math
from typing import Literal

from blocks._checks import check, check_count

LAUNCHERS = ("local", "ray")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """The running service: table ``[serving]`` of the file. Times in seconds.

    placement: ``auto`` to search for one at the start, or a file that ``plan`` wrote.
    launcher: processes of this machine, or of a Ray cluster.
    host, port: where to listen.
    slack: predictions may exceed a limit by this factor before a request is refused.
    load_wait_s: longest wait of a request for a model that must be loaded first.
    least_stay_s: how long a loaded model stays, however idle, before one that is asked for and
        loaded nowhere may take its place.
    drain_s: longest wait for the requests of a replica that is unloaded.
    start_s: longest start of a group, and longest load of a model.
    replan_every_s: how often traffic is looked at; 0 for never.
    window_s: the traffic that is looked at, newest last.
    least_gain: share of requests that a new placement must serve more.
    load_bytes_per_s: assumed speed of loading a model, to weigh what a change costs.
    heartbeat_s: how often a group says that it lives.
    max_restarts: starts in a row that may fail before a group's devices are given up.
    given_up_s: how long such devices are left alone before they are tried again.
    """

    placement: str = "auto"
    launcher: Literal["local", "ray"] = "local"
    host: str = "127.0.0.1"
    port: int = 8000
    slack: float = 1.0
    load_wait_s: float = 60.0
    least_stay_s: float = 30.0
    drain_s: float = 60.0
    start_s: float = 300.0
    replan_every_s: float = 60.0
    window_s: float = 300.0
    least_gain: float = 0.02
    load_bytes_per_s: float = 1e9
    heartbeat_s: float = 1.0
    max_restarts: int = 3
    given_up_s: float = 600.0

    def __post_init__(self) -> None:
        check(self.launcher in LAUNCHERS, "launcher", " or ".join(LAUNCHERS), repr(self.launcher))
        check(bool(self.placement), "placement", "auto or a file", "''")
        check(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        for name in (
            *("slack", "load_wait_s", "drain_s", "start_s", "window_s", "load_bytes_per_s"),
            "heartbeat_s",
        ):
            value = getattr(self, name)
            check(0 < value < math.inf, name, "more than 0, finite", value)
        for name in ("replan_every_s", "least_stay_s", "given_up_s"):
            value = getattr(self, name)
            check(0 <= value < math.inf, name, "0 or more seconds", value)
        check(0 <= self.least_gain < 1, "least_gain", "a share from 0 to 1", self.least_gain)
        check_count("max_restarts", self.max_restarts)
