"""What ``GET /cluster`` answers: plain records of groups, models, recent requests and events.

Times are seconds before the answer (``ago_s``), so that nobody's clock needs to agree.
"""

import msgspec


class Percentiles(msgspec.Struct, frozen=True):
    """Of the requests answered lately, in seconds."""

    p50: float
    p90: float
    p99: float


class History(msgspec.Struct, frozen=True):
    """Requests by time, oldest first; the last entry is still filling.

    bucket_s: seconds of an entry.
    arrived: requests that came.
    limited: requests with a time limit that were answered, refused or failed.
    met: those of them that were answered within it.
    """

    bucket_s: float
    arrived: tuple[int, ...]
    limited: tuple[int, ...]
    met: tuple[int, ...]


class ModelOnGroup(msgspec.Struct, frozen=True):
    """A replica.

    state: ``ready``, ``loading``, ``unloading``, ``failed``.
    num_running, num_waiting: requests.
    kv_used: share of its key-value cache that is taken [0 to 1]; None where it is not known.
    kv_tokens: tokens that cache has room for.
    weight_bytes: on all devices of the group; None where it is not known.
    """

    model: str
    state: str = "ready"
    num_running: int = 0
    num_waiting: int = 0
    kv_used: float | None = None
    kv_tokens: int | None = None
    weight_bytes: int | None = None


class GroupView(msgspec.Struct, frozen=True):
    """Devices that work as one.

    node: the machines they lie on, by name.
    configuration: ``op x pp``.
    state: ``ready``, ``starting``, ``draining``, ``lost``, ``stopped``, or what else is true.
    note: one line on why it is in that state, if there is something to say.
    """

    group: str
    devices: tuple[int, ...]
    node: str
    configuration: str
    state: str
    models: tuple[ModelOnGroup, ...] = ()
    note: str = ""


class ModelView(msgspec.Struct, frozen=True):
    """A model over all its replicas, lately.

    requests_per_s, refused_per_s: that came, that were turned away.
    attainment: share of the requests with a time limit that were answered within it; None of none.
    ttft_s, tpot_s, latency_s: None where nothing was answered.
    slo_ttft_s, slo_tpot_s: limits of requests that bring none of their own.
    """

    model: str
    num_in_flight: int = 0
    requests_per_s: float = 0.0
    refused_per_s: float = 0.0
    attainment: float | None = None
    ttft_s: Percentiles | None = None
    tpot_s: Percentiles | None = None
    latency_s: Percentiles | None = None
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    history: History | None = None


class EventView(msgspec.Struct, frozen=True):
    """Something that happened; ``kind`` is ``good``, ``bad`` or ``note``."""

    ago_s: float
    kind: str
    text: str


class ClusterState(msgspec.Struct, frozen=True):
    """A moment of a service.

    title: what is looked at.
    uptime_s: since the service began. window_s: what "lately" means.
    history: of all models together.
    events: latest first.
    """

    title: str
    uptime_s: float
    window_s: float
    groups: tuple[GroupView, ...]
    models: tuple[ModelView, ...]
    history: History
    events: tuple[EventView, ...] = ()
