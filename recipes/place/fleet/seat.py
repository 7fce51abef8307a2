"""``Seat``: a replica that answers requests, and what stands before it."""

import dataclasses

from blocks.sched.cluster_sim.generation import EngineSettings, Load, Standing, StepTime
from recipes.place.fleet.action import Devices


@dataclasses.dataclass(slots=True)
class Live:
    """A request that a seat has taken.

    made: tokens of each sample so far. over: samples that have ended.
    """

    prompt_len: int
    made: list[int]
    over: set[int] = dataclasses.field(default_factory=set)

    @property
    def is_prompt(self) -> bool:
        """Whether its prompt may not be computed yet."""
        return not any(self.made)


class Seat:
    """One model on one group, as far as a front door knows: the requests it has sent there and
    the tokens it has seen of them.

    devices, model: which one.
    step_time: seconds of its steps; None where the model was not timed so.
    num_blocks: of its cache. max_model_len: longest prompt plus output.
    used_s: when it was last given a request.
    """

    def __init__(
        self,
        devices: Devices,
        model: str,
        step_time: StepTime | None,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        used_s: float,
    ) -> None:
        self.devices, self.model, self.step_time = devices, model, step_time
        self.num_blocks, self.block_size = num_blocks, block_size
        self.max_model_len, self.used_s = max_model_len, used_s
        self.live: dict[str, Live] = {}
        self._num_ended, self._made_sum = 0, 0

    def take(self, request_id: str, prompt_len: int, num_samples: int, now_s: float) -> None:
        """A request is sent there."""
        assert request_id not in self.live, f"{request_id} is there already"
        self.live[request_id] = Live(prompt_len, [0] * num_samples)
        self.used_s = now_s

    def gain(self, request_id: str, sample: int, num_tokens: int, *, over: bool) -> None:
        """Tokens of a sample have come; ``over`` with the last of them."""
        live = self.live.get(request_id)
        if live is None or sample in live.over:
            return
        live.made[sample] += num_tokens
        if over:
            live.over.add(sample)
            self._num_ended += 1
            self._made_sum += live.made[sample]
            if len(live.over) == len(live.made):
                del self.live[request_id]

    def forget(self, request_id: str) -> None:
        """A request was given up."""
        self.live.pop(request_id, None)

    @property
    def num_live(self) -> int:
        """Samples that have not ended."""
        return sum(len(live.made) - len(live.over) for live in self.live.values())

    def stands(self) -> Standing:
        """What a prediction looks at. A prompt counts as not computed until its first token."""
        num_prompt = num_decodes = context_len = num_live = live_tokens = waiting_blocks = 0
        free = self.num_blocks
        running: list[tuple[int, int]] = []
        prompts: list[int] = []
        for live in self.live.values():
            if live.is_prompt:
                num_prompt += live.prompt_len
                num_live += len(live.made)
                live_tokens += live.prompt_len * len(live.made)
                prompts.append(-(-live.prompt_len // self.block_size))
                continue
            for sample, made in enumerate(live.made):
                if sample not in live.over:
                    length = live.prompt_len + made
                    num_decodes, context_len = num_decodes + 1, context_len + length
                    num_live, live_tokens = num_live + 1, live_tokens + length
                    running.append((made, -(-length // self.block_size)))
                    free -= running[-1][1]
        for blocks in prompts:  # in their order; behind one that waits all do
            if waiting_blocks or blocks > free:
                waiting_blocks += blocks
            else:
                free -= blocks
        return Standing(
            num_prompt,
            num_decodes,
            context_len,
            num_live,
            live_tokens,
            waiting_blocks,
            tuple(running),
            max(0, free),
            self._made_sum / self._num_ended if self._num_ended else 1.0,
        )

    def step_s(self, settings: EngineSettings) -> tuple[float, ...]:
        """About what its next step takes, in each stage; nothing where it has none."""
        if not self.live or self.step_time is None:
            return ()
        stands = self.stands()
        room = max(1, settings.token_budget - stands.num_decodes)
        load = Load(min(stands.num_prompt, room), (), stands.num_decodes, stands.context_len)
        return self.step_time(load)

    def check_invariants(self) -> None:
        """Assert that what has ended is gone."""
        for request_id, live in self.live.items():
            assert len(live.over) < len(live.made), request_id
            assert all(0 <= sample < len(live.made) for sample in live.over)
