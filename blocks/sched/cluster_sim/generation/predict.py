"""What a front door can know of a request before it takes it."""

from typing import NamedTuple

from blocks.sched.cluster_sim.generation.settings import EngineSettings
from blocks.sched.cluster_sim.generation.standing import Standing
from blocks.sched.cluster_sim.generation.step_time import Load, Seconds, StepTime


class Prediction(NamedTuple):
    """Seconds to the first token, and for each one after it."""

    ttft_s: float
    tpot_s: float


def predict(
    stands: Standing,
    step_time: StepTime,
    settings: EngineSettings,
    prompt_len: int,
    *,
    busy_s: float = 0.0,
    others_s: float = 0.0,
) -> Prediction:
    """What a request would see, judged by what stands in its engine and its group.

    The prompt tokens before it and its own fill steps of the token budget, beside the decodes; one
    step of every other busy engine of the group comes between two of them. With several lanes every
    step has its share of the decodes, and steps follow one another as fast as the slowest stage
    takes them, or a lane comes free; but where engines do not overlap, only an engine that is alone
    at work has several. Where the cache is short of blocks, enough running answers must end first:
    they are taken to be of the mean length of the answers so far, as nobody knows how long an
    answer will be.

    Args:
        stands: in the engine that would get the request.
        step_time: seconds of each stage for a step of the engine.
        settings: of the engine.
        busy_s: seconds until the engine could begin a step.
        others_s: what the last steps of the group's other busy engines took of its slowest stage.
    """
    is_alone = not others_s
    lanes = settings.lanes(step_time.num_stages) if settings.overlap or is_alone else 1
    decodes = _share(stands.num_decodes, stands.context_len, lanes)
    todo = stands.num_prompt + prompt_len
    per_step = max(1, settings.token_budget - decodes[0])
    num_steps = -(-todo // per_step)

    def apart_s(stage_s: Seconds, lanes: int) -> float:
        """From one step of the engine to the next, with those of the others in between."""
        held_s = max(stage_s) if is_alone else settings.holds_s(stage_s) + others_s
        return max(sum(stage_s) / lanes, held_s)

    def seconds(num_prompt: int, num_decodes: int, context_len: int) -> Seconds:
        return step_time(Load(num_prompt, (), num_decodes, context_len))

    ttft_s = busy_s + others_s + sum(seconds(todo - (num_steps - 1) * per_step, *decodes))
    if num_steps > 1:
        ttft_s += (num_steps - 1) * apart_s(seconds(per_step, *decodes), lanes)
    together, context_len = _later(stands, settings, prompt_len)
    turns = min(lanes, together)
    tpot_s = turns * apart_s(seconds(0, *_share(together, context_len, turns)), turns)
    return Prediction(ttft_s + _wait_s(stands, settings, prompt_len, tpot_s), tpot_s)


def _share(num_decodes: int, context_len: int, lanes: int) -> tuple[int, int]:
    """Of so many sequences those that decode in one of the batches, and their tokens."""
    if lanes == 1 or not num_decodes:
        return num_decodes, context_len
    share = -(-num_decodes // lanes)
    return share, context_len * share // num_decodes


def _later(stands: Standing, settings: EngineSettings, prompt_len: int) -> tuple[int, int]:
    """Sequences that will decode together once all prompts are computed, and their tokens."""
    count, context_len = stands.num_live + 1, stands.live_tokens + prompt_len
    most = settings.max_num_seqs
    return (count, context_len) if count <= most else (most, context_len * most // count)


def _wait_s(stands: Standing, settings: EngineSettings, prompt_len: int, tpot_s: float) -> float:
    """Seconds until enough answers have ended that all who wait have blocks and places."""
    wanted = stands.waiting_blocks - (-prompt_len // settings.block_size)
    blocks = wanted - stands.num_free_blocks
    places = stands.num_live + 1 - settings.max_num_seqs
    ends = sorted(
        (max(1.0, stands.expected_output - num_output), num_blocks)
        for num_output, num_blocks in stands.running
    )
    num_tokens = 0.0
    for remaining, held in ends:
        if blocks <= 0 and places <= 0:
            break
        num_tokens, blocks, places = remaining, blocks - held, places - 1
    return num_tokens * tpot_s
