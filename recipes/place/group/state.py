"""What a group tells of itself: plain data, for routing, for metrics and for people."""

import dataclasses
from typing import Literal, NamedTuple

from blocks.sched.cluster_sim.generation import Load, Standing
from recipes.serve.metrics import EngineStats


@dataclasses.dataclass(frozen=True, slots=True)
class ModelState:
    """One model on a group.

    status: ``loading``, ``serving``, or ``draining``: it takes no more work and goes.
    num_waiting, num_running: sequences in the queue, and holding blocks.
    usable_blocks, block_size: of its cache.
    last_step_s: what its last step took, from being sent out.
    standing: what stands in its engine, for predictions.
    stats: gauges and counters of its engine.
    """

    status: Literal["loading", "serving", "draining"] = "loading"
    num_waiting: int = 0
    num_running: int = 0
    usable_blocks: int = 0
    block_size: int = 1
    last_step_s: float = 0.0
    standing: Standing = dataclasses.field(default_factory=Standing)
    stats: EngineStats = dataclasses.field(default_factory=EngineStats)


class UnderWay(NamedTuple):
    """A batch of an engine: what it computes, and how long ago something happened to it."""

    load: Load
    ago_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class GroupState:
    """A group, as of its last step or heartbeat.

    models: by name. used_bytes: weights and caches of hosted models and the largest activations, of
        each device.
    num_steps: since it started. seen: number of the last submission that is counted in it.
    stepping: whose steps are under way, empty for none.
    step_s: how long the first of them had been the first when this was told.
    under_way: they, in order, and how long ago they were sent out.
    before: the last one before them and how long ago it was through; None where they found the
        stages empty.
    """

    models: dict[str, ModelState] = dataclasses.field(default_factory=dict)
    used_bytes: tuple[int, ...] = ()
    num_steps: int = 0
    seen: int = 0
    stepping: str = ""
    step_s: float = 0.0
    under_way: tuple[UnderWay, ...] = ()
    before: UnderWay | None = None
