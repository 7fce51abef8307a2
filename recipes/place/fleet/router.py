"""``Router``: which replica a request goes to, or what it is refused with."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from blocks.sched.cluster_sim.generation import (
    EngineSettings,
    Prediction,
    StepTime,
    predict,
)
from blocks.sched.profile import Timing
from recipes.place.fleet.action import Devices
from recipes.place.fleet.seat import Seat, Word, unheard
from recipes.place.fleet.slo import Slo


class Route(NamedTuple):
    """Where a request goes; prediction: what it will see, None where nothing is known of it."""

    seat: Seat
    prediction: Prediction | None


class Refusal(NamedTuple):
    """No replica would be in time.

    seat, prediction: the one that would be soonest.
    retry_s: seconds after which another try may be worth it.
    """

    seat: Seat
    prediction: Prediction
    retry_s: float


class Router:
    """All replicas that answer requests, and the requests they have.

    Args:
        settings: of every engine.
        slack: predictions may exceed limits by this factor.
        look: what a group has told of one of its replicas.
        request_s: seconds that a request takes beside steps until its first token is there.

    **Invariants**

    1. A request is at one seat at most.
    2. Requests are sent to open seats only; a shut one keeps those it has until they end.
    """

    def __init__(
        self,
        settings: EngineSettings,
        slack: float = 1.0,
        look: Callable[[Seat], Word] = unheard,
        request_s: float = 0.0,
    ) -> None:
        self.settings, self.slack, self.look = settings, slack, look
        self.request_s = request_s
        self._open: dict[str, dict[Devices, Seat]] = {}
        self._seats: dict[Devices, dict[str, Seat]] = {}
        self._at: dict[str, Seat] = {}

    # --- replicas -------------------------------------------------------------------------------

    def open(
        self,
        devices: Devices,
        model: str,
        timing: Timing | None,
        *,
        kv_tokens: int,
        max_model_len: int,
        now_s: float,
    ) -> Seat:
        """A replica answers requests from now on."""
        assert model not in self._seats.get(devices, {}), f"{model} on {devices} is there already"
        seat = Seat(
            devices,
            model,
            StepTime(timing) if timing is not None and timing.decode else None,
            num_blocks=kv_tokens // self.settings.block_size,
            block_size=self.settings.block_size,
            max_model_len=max_model_len,
            used_s=now_s,
        )
        self._seats.setdefault(devices, {})[model] = seat
        self._open.setdefault(model, {})[devices] = seat
        return seat

    def shut(self, devices: Devices, model: str) -> None:
        """No more requests are sent there."""
        self._open.get(model, {}).pop(devices, None)

    def drop(self, devices: Devices, model: str) -> list[str]:
        """The replica is gone; ids of the requests that had not ended."""
        self.shut(devices, model)
        seat = self._seats.get(devices, {}).pop(model, None)
        if not self._seats.get(devices, True):
            del self._seats[devices]
        if seat is None:
            return []
        left = list(seat.live)
        for request_id in left:
            del self._at[request_id]
        seat.live.clear()
        return left

    def hosts(self, model: str) -> list[Seat]:
        """Open seats of a model."""
        return list(self._open.get(model, {}).values())

    def seats(self) -> Iterator[Seat]:
        """All of them, shut ones too."""
        for seats in self._seats.values():
            yield from seats.values()

    def seat(self, devices: Devices, model: str) -> Seat | None:
        """Of a model on a group, open or shut."""
        return self._seats.get(devices, {}).get(model)

    # --- requests -------------------------------------------------------------------------------

    def choose(
        self,
        model: str,
        prompt_len: int,
        slo: Slo,
        *,
        total_len: int = 0,
        avoid: Collection[Seat] = (),
    ) -> Route | Refusal | None:
        """The replica with the shortest queue, in seconds to the first token; of equals the one
        with the fewest requests.

        Args:
            prompt_len: tokens of all prompts that come together.
            total_len: longest prompt plus output; replicas with less room are asked last.
            avoid: replicas that are not asked.

        Returns:
            A refusal where no replica is predicted to keep the limits; None where there is none.
        """
        seats = [seat for seat in self.hosts(model) if not any(seat is other for other in avoid)]
        roomy = [seat for seat in seats if seat.max_model_len >= total_len]
        routes = [Route(seat, self.predict(seat, prompt_len)) for seat in roomy or seats]
        if not routes:
            return None
        in_time = [
            r for r in routes if r.prediction is None or slo.allows(r.prediction, self.slack)
        ]
        if in_time:
            return min(in_time, key=_queue)
        best = min(routes, key=_queue)
        assert best.prediction is not None
        return Refusal(best.seat, best.prediction, self._retry_s(best, slo))

    def predict(self, seat: Seat, prompt_len: int) -> Prediction | None:
        """What a request of so many tokens would see there."""
        if seat.step_time is None:
            return None
        word = self.look(seat)
        ttft_s, tpot_s = predict(
            seat.stands(word),
            seat.step_time,
            self.settings,
            prompt_len,
            busy_s=word.busy_s,
            others_s=word.others_s,
        )
        return Prediction(ttft_s + self.request_s, tpot_s)

    def _retry_s(self, route: Route, slo: Slo) -> float:
        """Until the queue has become short enough, or one of the answers has ended."""
        assert route.prediction is not None
        late_s = route.prediction.ttft_s - slo.ttft_s * self.slack
        if late_s > 0:
            return late_s
        return route.prediction.tpot_s * max(1.0, self.look(route.seat).standing.expected_output)

    def take(
        self, seat: Seat, request_id: str, prompt_len: int, num_samples: int, now_s: float
    ) -> None:
        """A request is sent to a seat."""
        assert request_id not in self._at, f"{request_id} is somewhere already"
        assert self._open.get(seat.model, {}).get(seat.devices) is seat, "expected an open seat"
        seat.take(request_id, prompt_len, num_samples, now_s)
        self._at[request_id] = seat

    def end(self, request_id: str, sample: int) -> None:
        """A sample of a request has had its last token."""
        seat = self._at.get(request_id)
        if seat is not None:
            seat.end(request_id, sample)
            if request_id not in seat.live:
                del self._at[request_id]

    def forget(self, request_id: str) -> None:
        """A request was given up, or goes elsewhere."""
        seat = self._at.pop(request_id, None)
        if seat is not None:
            seat.forget(request_id)

    def has(self, request_id: str) -> bool:
        """Whether a seat has a request that has not ended."""
        return request_id in self._at

    @property
    def num_live(self) -> int:
        """Samples that have not ended."""
        return sum(seat.num_live for seat in self.seats())

    def check_invariants(self) -> None:
        """Assert invariants 1 and 2."""
        found = {request_id: seat for seat in self.seats() for request_id in seat.live}
        assert found == self._at, "requests and seats disagree"
        assert sum(len(seat.live) for seat in self.seats()) == len(self._at)
        for seat in self.seats():
            seat.check_invariants()
        for model, seats in self._open.items():
            for devices, seat in seats.items():
                assert self._seats[devices][model] is seat, (devices, model)


def _queue(route: Route) -> tuple[float, int]:
    seconds = math.inf if route.prediction is None else route.prediction.ttft_s
    return seconds, route.seat.num_live
