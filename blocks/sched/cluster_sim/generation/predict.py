"""What a front door can know of a request before it takes it."""

from typing import NamedTuple

from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.group_run import GroupRun
from blocks.sched.request import State


class Prediction(NamedTuple):
    """Seconds to the first token, and for each one after it."""

    ttft_s: float
    tpot_s: float


def predict(group: GroupRun, engine: Engine, prompt_len: int, now_s: float) -> Prediction:
    """What a request would see, judged by what stands in its engine and its group.

    The prompt tokens before it and its own fill steps of the token budget, beside the decodes; one
    step of every other busy engine of the group comes between two of them. Where the cache is
    short of blocks, enough running answers must end first: they are taken to be of the mean length
    of the answers so far, as nobody knows how long an answer will be.
    """
    settings = engine.settings
    num_prompt, num_decodes, context_len = engine.standing()
    todo = num_prompt + prompt_len
    per_step = max(1, settings.token_budget - num_decodes)
    num_steps = -(-todo // per_step)
    others_s = sum(
        other.last_step_s for other in group.engines if other is not engine and other.live
    )
    last_s = engine.seconds(todo - (num_steps - 1) * per_step, num_decodes, context_len)
    ttft_s = max(0.0, group.clock[0] - now_s)
    if engine.in_flight is not None:
        ttft_s = max(ttft_s, engine.free_s - now_s)
    ttft_s += others_s + sum(last_s)
    if num_steps > 1:
        full_s = engine.seconds(per_step, num_decodes, context_len)
        ttft_s += (num_steps - 1) * max(sum(full_s), max(full_s) + others_s)
    later_s = engine.seconds(0, *_later(engine, prompt_len))
    tpot_s = max(sum(later_s), max(later_s) + others_s)
    return Prediction(ttft_s + _wait_s(engine, prompt_len, tpot_s), tpot_s)


def _later(engine: Engine, prompt_len: int) -> tuple[int, int]:
    """Sequences that will decode together once all prompts are computed, and their tokens."""
    count = len(engine.live) + 1
    context_len = sum(len(sequence.tokens) for sequence in engine.live.values()) + prompt_len
    most = engine.settings.max_num_seqs
    return (count, context_len) if count <= most else (most, context_len * most // count)


def _wait_s(engine: Engine, prompt_len: int, tpot_s: float) -> float:
    """Seconds until enough answers have ended that all who wait have blocks and places."""
    settings, size = engine.settings, engine.settings.block_size
    waiting = [s for s in engine.live.values() if s.state is State.WAITING]
    running = [s for s in engine.live.values() if s.state is not State.WAITING]
    wanted = sum(-(-len(s.tokens) // size) for s in waiting) - (-prompt_len // size)
    blocks = wanted - engine.allocator.num_free_blocks
    places = len(engine.live) + 1 - settings.max_num_seqs
    expected = engine.expected_output(1)
    ends = sorted((max(1.0, expected - s.num_output), s.num_slots // size) for s in running)
    num_tokens = 0.0
    for remaining, held in ends:
        if blocks <= 0 and places <= 0:
            break
        num_tokens, blocks, places = remaining, blocks - held, places - 1
    return num_tokens * tpot_s
