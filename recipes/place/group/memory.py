"""``DeviceMemory``: who holds how much of a group's devices."""

import threading
from collections.abc import Sequence

from recipes.place.group.faults import LoadFailed
from recipes.serve.sizes import format_bytes


class DeviceMemory:
    """Bytes of a group's devices by model; taken before anything is loaded. For several threads.

    Invariants:
        1. No device holds more than ``limit`` bytes.

    Args:
        num_devices: of the group. limit: bytes of each; None for no limit.
    """

    def __init__(self, num_devices: int, limit: int | None) -> None:
        self._num_devices, self._limit = num_devices, limit
        self._held: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def take(self, model: str, num_bytes: Sequence[int]) -> None:
        """
        Raises:
            LoadFailed: a device has not that much left; nothing is taken then.
        """
        with self._lock:
            after = [a + b for a, b in zip(self._used(), num_bytes, strict=True)]
            if self._limit is not None and max(after) > self._limit:
                at = after.index(max(after))
                raise LoadFailed(
                    f"model {model} needs {format_bytes(num_bytes[at])} of device {at} of the "
                    f"group, which has {format_bytes(self._limit - after[at] + num_bytes[at])} "
                    f"left of {format_bytes(self._limit)}"
                )
            self._held[model] = tuple(num_bytes)

    def give_back(self, model: str) -> None:
        """What a model held, if anything."""
        with self._lock:
            self._held.pop(model, None)

    def used(self) -> tuple[int, ...]:
        """Of every device."""
        with self._lock:
            return self._used()

    def check_invariants(self) -> None:
        used = self.used()
        assert self._limit is None or max(used) <= self._limit, (used, self._limit)

    def _used(self) -> tuple[int, ...]:
        parts = list(self._held.values())
        return tuple(sum(part[at] for part in parts) for at in range(self._num_devices))
