"""``DeviceMemory``: who holds how much of a group's devices."""

import threading
from collections.abc import Sequence

from recipes.place.group.faults import LoadFailed
from recipes.serve.sizes import format_bytes


class DeviceMemory:
    """Bytes of a group's devices by model; taken before anything is loaded. For several threads.

    Each model has its weights and its cache to itself. Activations are there once, for the model
    that needs most: a device takes one step at a time.

    Invariants:
        1. No device holds more than ``limit`` bytes, whichever model steps.

    Args:
        num_devices: of the group. limit: bytes of each; None for no limit.
    """

    def __init__(self, num_devices: int, limit: int | None) -> None:
        self._num_devices, self._limit = num_devices, limit
        self._held: dict[str, tuple[int, ...]] = {}
        self._activations: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, model: str, num_bytes: Sequence[int], activation_bytes: int = 0) -> None:
        """
        Args:
            num_bytes: of weights and cache, on every device.
            activation_bytes: of each device while a step of the model runs.

        Raises:
            LoadFailed: a device has not that much left; nothing is taken then.
        """
        with self._lock:
            before = self._used()
            grown = max(0, activation_bytes - max(self._activations.values(), default=0))
            more = [own + grown for own in num_bytes]
            after = [a + b for a, b in zip(before, more, strict=True)]
            if self._limit is not None and max(after) > self._limit:
                at = after.index(max(after))
                raise LoadFailed(
                    f"model {model} needs {format_bytes(more[at])} of device {at} of the "
                    f"group, which has {format_bytes(self._limit - before[at])} "
                    f"left of {format_bytes(self._limit)}"
                )
            self._held[model] = tuple(num_bytes)
            self._activations[model] = activation_bytes

    def give_back(self, model: str) -> None:
        """What a model held, if anything."""
        with self._lock:
            self._held.pop(model, None)
            self._activations.pop(model, None)

    def used(self) -> tuple[int, ...]:
        """Of every device: all weights and caches, and the largest activations."""
        with self._lock:
            return self._used()

    def check_invariants(self) -> None:
        used = self.used()
        assert self._limit is None or max(used) <= self._limit, (used, self._limit)

    def _used(self) -> tuple[int, ...]:
        parts = list(self._held.values())
        most = max(self._activations.values(), default=0)
        return tuple(sum(part[at] for part in parts) + most for at in range(self._num_devices))
