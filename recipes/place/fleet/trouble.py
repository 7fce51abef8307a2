"""``Trouble``: what has failed, and when it may be tried again."""

from collections.abc import Collection

from recipes.place.fleet.action import Devices
from recipes.place.fleet.backoff import Backoff


class Trouble:
    """Devices that cannot be used, starts and loads that wait for another try.

    Args:
        max_restarts: starts that may fail in a row before the devices are given up.
        given_up_s: after so long they may be tried again.

    lost: devices of nodes that are gone.
    """

    def __init__(
        self,
        max_restarts: int,
        starts: Backoff[Devices] | None = None,
        loads: Backoff[tuple[Devices, str]] | None = None,
        *,
        given_up_s: float = 600.0,
    ) -> None:
        self.lost: set[int] = set()
        self._max_restarts, self._given_up_s = max_restarts, given_up_s
        self._starts = Backoff() if starts is None else starts
        self._loads = Backoff() if loads is None else loads
        self._given_up: dict[int, float] = {}
        self._why: dict[str, str] = {}

    def unusable(self, now_s: float) -> set[int]:
        """Devices that are lost or were given up."""
        return self.lost | {d for d in self._given_up if self._is_given_up(d, now_s)}

    def waiting(self, now_s: float) -> frozenset[tuple[Devices, str]]:
        """What is not to be tried yet; ``(devices, "")`` for the start of a group."""
        starts = frozenset((devices, "") for devices in self._starts.waiting(now_s))
        return starts | self._loads.waiting(now_s)

    def next_s(self, now_s: float) -> float:
        """When a wait is over."""
        back_s = [at_s + self._given_up_s for at_s in self._given_up.values()]
        return min([self._starts.next_s(now_s), self._loads.next_s(now_s), *back_s])

    def recover(self, now_s: float) -> bool:
        """Whether devices that were given up may be used again from now on."""
        over = [d for d in self._given_up if not self._is_given_up(d, now_s)]
        for device in over:
            del self._given_up[device]
        return bool(over)

    def _is_given_up(self, device: int, now_s: float) -> bool:
        """A clock that was set back ends it."""
        return 0 <= now_s - self._given_up[device] < self._given_up_s

    def group_works(self, devices: Devices) -> None:
        """It has lived long enough."""
        self._starts.clear(devices)

    def group_failed(self, devices: Devices, now_s: float) -> int:
        """It did not start, or was lost; failures in a row, 0 where the devices are given up."""
        num = self._starts.fail(devices, now_s)
        if num < self._max_restarts:
            return num
        self._starts.clear(devices)
        self._given_up.update(dict.fromkeys(devices, now_s))
        return 0

    def load_failed(self, devices: Devices, model: str, now_s: float, why: str) -> int:
        """A model could not be loaded; failures in a row."""
        self._why[model] = why
        return self._loads.fail((devices, model), now_s)

    def loaded(self, devices: Devices, model: str) -> None:
        """A model was loaded."""
        self._loads.clear((devices, model))
        self._why.pop(model, None)

    def why_not(self, model: str) -> str | None:
        """Why its last load failed; None where it did not."""
        return self._why.get(model)

    def lose(self, devices: Collection[int]) -> None:
        """Their node is gone."""
        self.lost.update(devices)

    def regain(self, devices: Collection[int]) -> bool:
        """Their node is back; whether any of them was lost."""
        back = self.lost.intersection(devices)
        self.lost -= back
        return bool(back)
