"""``Seat``: a replica that answers requests, and what stands before it."""

import dataclasses
from typing import NamedTuple

from blocks.sched.cluster_sim.generation import Standing, StepTime
from recipes.place.fleet.action import Devices


@dataclasses.dataclass(slots=True)
class Live:
    """A request that a seat has taken; left: its samples that have not ended."""

    prompt_len: int
    left: set[int]


class Word(NamedTuple):
    """The last that a group has told of a replica.

    standing: in its engine then.
    unseen: prompt lengths of what was sent there and is not counted in it.
    busy_s: seconds until the step under way is through.
    others_s: of the last steps of the group's other busy engines, together.
    """

    standing: Standing
    unseen: tuple[int, ...] = ()
    busy_s: float = 0.0
    others_s: float = 0.0


class Seat:
    """One model on one group, and the requests that a front door has sent there.

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

    def take(self, request_id: str, prompt_len: int, num_samples: int, now_s: float) -> None:
        """A request is sent there."""
        assert request_id not in self.live, f"{request_id} is there already"
        self.live[request_id] = Live(prompt_len, set(range(num_samples)))
        self.used_s = now_s

    def end(self, request_id: str, sample: int) -> None:
        """A sample has had its last token."""
        live = self.live.get(request_id)
        if live is not None:
            live.left.discard(sample)
            if not live.left:
                del self.live[request_id]

    def forget(self, request_id: str) -> None:
        """A request was given up."""
        self.live.pop(request_id, None)

    @property
    def num_live(self) -> int:
        """Samples that have not ended."""
        return sum(len(live.left) for live in self.live.values())

    def stands(self, word: Word) -> Standing:
        """What a prediction looks at: what stood there, and what was sent since."""
        stands = word.standing
        for prompt_len in word.unseen:
            stands = stands.joined(prompt_len, self.block_size)
        return stands

    def check_invariants(self) -> None:
        """Assert that what has ended is gone."""
        assert all(live.left for live in self.live.values()), self.live


def unheard(seat: Seat) -> Word:
    """Of a group that has told nothing yet: all that it has waits for an empty engine."""
    prompts = tuple(live.prompt_len for live in seat.live.values())
    return Word(Standing(num_free_blocks=seat.num_blocks), prompts)
