"""``Port``: a group, as whoever measures it needs it."""

from collections.abc import Sequence
from typing import Protocol

from recipes.place.fleet.told_state import Telling
from recipes.place.group.taken import OnLost
from recipes.serve.job import Job
from recipes.serve.stream import Stream


class Port(Telling, Protocol):
    """A group that requests can be sent to; ``GroupHandle`` meets it."""

    async def submit(
        self,
        model: str,
        jobs: Sequence[Job],
        *,
        ttft_s: float,
        tpot_s: float,
        on_lost: OnLost | None = None,
    ) -> Stream: ...
