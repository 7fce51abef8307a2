"""What a group tells of itself: plain data, for routing, for metrics and for people."""

import dataclasses
from typing import Literal

from recipes.serve.metrics import EngineStats

MAX_HELD = 64
"""Running sequences told of one by one."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelState:
    """One model on a group.

    status: ``loading``, ``serving``, or ``draining``: it takes no more work and goes.
    num_waiting, num_running: sequences in the queue, and holding blocks.
    prompt_tokens: of admitted and waiting requests, still to be computed.
    num_decodes, context_tokens: sequences whose prompt is computed, and their tokens.
    num_sequences, live_tokens: all sequences that have not ended, and their tokens.
    waiting_blocks: cache blocks that the queue asks for.
    free_blocks, usable_blocks, block_size: of its cache.
    held: of running sequences (at most 64) output tokens so far, and blocks held.
    mean_output: tokens of an answer so far, 0 before the first.
    last_step_s: what its last step took.
    stats: gauges and counters of its engine.
    """

    status: Literal["loading", "serving", "draining"] = "loading"
    num_waiting: int = 0
    num_running: int = 0
    prompt_tokens: int = 0
    num_decodes: int = 0
    context_tokens: int = 0
    num_sequences: int = 0
    live_tokens: int = 0
    waiting_blocks: int = 0
    free_blocks: int = 0
    usable_blocks: int = 0
    block_size: int = 1
    held: tuple[tuple[int, int], ...] = ()
    mean_output: float = 0.0
    last_step_s: float = 0.0
    stats: EngineStats = dataclasses.field(default_factory=EngineStats)


@dataclasses.dataclass(frozen=True, slots=True)
class GroupState:
    """A group, as of its last step or heartbeat.

    models: by name. used_bytes: weights and caches of hosted models, of each device.
    num_steps: since it started. step_s: how long the step under way has taken by now, 0 for none.
    stepping: whose step that is.
    """

    models: dict[str, ModelState] = dataclasses.field(default_factory=dict)
    used_bytes: tuple[int, ...] = ()
    num_steps: int = 0
    step_s: float = 0.0
    stepping: str = ""
