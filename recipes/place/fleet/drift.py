"""``Traffic``: the requests of the last minutes, and the forecast that they are. Needs no torch."""

import collections
import dataclasses
from collections.abc import Sequence

from blocks.sched.workload import Workload
from recipes.place.fleet.slo import Slo

MOST = 2000
"""Requests remembered at most."""


@dataclasses.dataclass(slots=True)
class Arrival:
    """A request; output_len: tokens that came so far."""

    at_s: float
    model: str
    prompt_len: int
    slo: Slo
    output_len: int = 0


class Traffic:
    """What was asked for within the last ``window_s`` seconds, refused requests included.

    models: all that may be asked for.
    """

    def __init__(self, models: Sequence[str], window_s: float) -> None:
        self.models, self.window_s = tuple(models), window_s
        self._arrivals: collections.deque[Arrival] = collections.deque(maxlen=MOST)

    def arrive(self, model: str, prompt_len: int, slo: Slo, now_s: float) -> Arrival:
        """A request comes; its tokens are counted in what is returned."""
        if self._arrivals and now_s < self._arrivals[-1].at_s:  # the clock was set back
            self._arrivals.clear()
        self._arrivals.append(Arrival(now_s, model, max(1, prompt_len), slo))
        return self._arrivals[-1]

    def forecast(self, now_s: float, most: int = 400) -> Workload | None:
        """The last requests again, at most ``most``: None of fewer than 10, which say nothing.

        An answer that was not given is taken to be of the model's mean length.
        """
        since_s = now_s - self.window_s
        recent = [one for one in self._arrivals if since_s <= one.at_s <= now_s][-most:]
        if len(recent) < 10:
            return None
        begin_s = recent[0].at_s if len(recent) == most else max(since_s, self._arrivals[0].at_s)
        mean = self._mean_output(recent)
        return Workload.of(
            self.models,
            [one.at_s - begin_s for one in recent],
            [self.models.index(one.model) for one in recent],
            slo_s=[one.slo.ttft_s for one in recent],
            tpot_s=[one.slo.tpot_s for one in recent],
            prompt_len=[one.prompt_len for one in recent],
            output_len=[one.output_len or mean.get(one.model, 1) for one in recent],
            duration_s=max(now_s - begin_s, recent[-1].at_s - begin_s),
        )

    @staticmethod
    def _mean_output(recent: Sequence[Arrival]) -> dict[str, int]:
        lengths: dict[str, list[int]] = collections.defaultdict(list)
        for one in recent:
            if one.output_len:
                lengths[one.model].append(one.output_len)
        return {model: max(1, round(sum(own) / len(own))) for model, own in lengths.items()}
