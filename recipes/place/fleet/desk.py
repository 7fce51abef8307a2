"""``Desk``: every request from its arrival to its last token, whatever groups do meanwhile."""

import dataclasses
from typing import NamedTuple

from recipes.place.fleet.drift import Arrival, Traffic
from recipes.place.fleet.fleet import Fleet
from recipes.place.fleet.router import Refusal, Route
from recipes.place.fleet.seat import Seat
from recipes.place.fleet.slo import Slo

NO_ROOM = "no device has room for it"


class Part(NamedTuple):
    """One prompt of a request, with ``num_samples`` answers."""

    part_id: str
    prompt_len: int
    num_samples: int = 1


class Nowhere(NamedTuple):
    """The model has no replica; ``coming`` where one will be loaded soon, else ``why`` not.

    wait_s: seconds until one may be there, where others must stay for a while first.
    """

    coming: bool
    why: str = ""
    wait_s: float | None = None


@dataclasses.dataclass(slots=True)
class Ask:
    """A request.

    total_len: longest prompt with its output. slo: its limits.
    arrival: its entry in the traffic.
    tried: replicas it was sent to, in order.
    delivered: whether a token of it has come that counts.
    """

    model: str
    parts: tuple[Part, ...]
    total_len: int
    slo: Slo
    arrival: Arrival | None = None
    tried: list[Seat] = dataclasses.field(default_factory=list)
    delivered: bool = False

    @property
    def prompt_len(self) -> int:
        """Tokens of all its prompts."""
        return sum(part.prompt_len for part in self.parts)


class Desk:
    """Sends requests to groups, and once more where what computes one is lost before it was seen.

    Args:
        traffic: is told what was asked for.

    **Invariants**

    1. The parts of a request that have not ended are all at one seat.
    2. A request is sent out twice at most, and a second time only if no token of it counts.
    """

    def __init__(self, fleet: Fleet, traffic: Traffic) -> None:
        self.fleet, self.router, self.traffic = fleet, fleet.router, traffic
        self._asks: dict[str, Ask] = {}

    def ask(self, ask: Ask, now_s: float) -> Route | Refusal | Nowhere:
        """A request comes, or comes again once its model is there. With a route it counts as sent
        there; otherwise nothing is kept of it."""
        self.fleet.ask(ask.model, now_s)
        if ask.arrival is None:
            ask.arrival = self.traffic.arrive(ask.model, ask.prompt_len, ask.slo, now_s)
        wanted = ask.model, ask.prompt_len, ask.slo
        found = self.router.choose(*wanted, total_len=ask.total_len, avoid=ask.tried)
        if found is None and ask.tried:  # one that goes on, for its processes are started anew
            found = self.router.choose(*wanted, total_len=ask.total_len)
        if isinstance(found, Route):
            self._send(ask, found, now_s)
        if found is not None:
            return found
        why = self.fleet.why_not(ask.model)
        if self.fleet.want(ask.model, now_s):
            return Nowhere(why is None, why or "")
        return Nowhere(False, why or NO_ROOM, self.fleet.wait_s(ask.model, now_s))

    def lost(self, ask: Ask) -> bool:
        """What computes it is lost; whether it may be asked for once more, which it is not refused
        then."""
        if not self._drop(ask) or ask.delivered or len(ask.tried) > 1:
            return False
        ask.slo = Slo()
        return True

    def restart(self, ask: Ask) -> None:
        """Its tokens so far count no more: nobody has seen them, and it is asked for anew."""
        ask.delivered = False
        if ask.arrival is not None:
            ask.arrival.output_len = 0

    def gain(self, part_id: str, sample: int, num_tokens: int, *, over: bool) -> None:
        """Tokens have come; ``over`` with a sample's last."""
        ask = self._asks.get(part_id)
        if ask is None:
            return
        ask.delivered = True
        if ask.arrival is not None:
            ask.arrival.output_len += num_tokens
        if over:
            self.router.end(part_id, sample)
        if not self.router.has(part_id):
            del self._asks[part_id]

    def forget(self, ask: Ask) -> None:
        """It was given up, or has failed."""
        self._drop(ask)

    def of(self, part_id: str) -> Ask | None:
        """The request that a part belongs to; None where that has ended."""
        return self._asks.get(part_id)

    def _send(self, ask: Ask, route: Route, now_s: float) -> None:
        ask.tried.append(route.seat)
        for part in ask.parts:
            self.router.take(route.seat, *part, now_s)
            self._asks[part.part_id] = ask

    def _drop(self, ask: Ask) -> bool:
        """Forget where it is; whether it was anywhere."""
        known = [self._asks.pop(part.part_id, None) for part in ask.parts]
        for part in ask.parts:
            self.router.forget(part.part_id)
        return any(known)

    def check_invariants(self) -> None:
        """Assert invariants 1 and 2."""
        self.fleet.check_invariants()
        for part_id, ask in self._asks.items():
            assert any(part.part_id == part_id for part in ask.parts)
            assert len(ask.tried) in (1, 2), ask
