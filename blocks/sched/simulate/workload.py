"""The requests that arrive."""

import random

from blocks.sched.request import Request
from blocks.sched.simulate.model import VOCABULARY
from blocks.sched.simulate.options import Options


class Workload:
    """Draws requests: shared prefixes, repeated prompts, several samples, priorities, all sizes."""

    def __init__(self, options: Options, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.num_drawn = 0
        longest = options.max_model_len - 1
        self.prefixes = [self._tokens(rng.randint(1, longest)) for _ in range(4)]

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(count)]

    def draw(self) -> Request:
        """The next request; about one in twenty can never be served."""
        rng, limit = self.rng, self.options.max_model_len
        prompt = list(rng.choice(self.prefixes)) if rng.random() < 0.7 else []
        if not prompt or rng.random() < 0.8:
            prompt += self._tokens(rng.randint(1, 6))
        prompt = prompt[: limit - 1]
        room = limit - len(prompt)
        max_tokens = room + 5 if rng.random() < 0.05 else rng.randint(1, room)
        self.num_drawn += 1
        return Request(
            request_id=f"r{self.num_drawn}",
            prompt_tokens=prompt,
            max_tokens=max_tokens,
            num_samples=rng.choice([1, 1, 1, 2, 3, 6]),
            priority=rng.randint(0, 3),
            eos_token_ids=(0,),
            stop_token_ids=rng.choice([(), (1,), (0, 2)]),
            min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
            ignore_eos=rng.random() < 0.3,
            namespace=rng.choice(["", "", "tenant"]),
        )
