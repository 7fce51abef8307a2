"""``MemoryTracker``: the bytes of the tensors a thread makes while they live."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryTracker(TorchDispatchMode):
    """Counts the memory behind tensors that operations of this thread give back.

    Every memory counts once, however many tensors look at it, until the last of them goes. What
    an operation allocates inside of itself is not seen, nor what was there before.

    Invariants:
        1. ``held`` is the sum of the memories that still live; ``peak`` the most it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, int] = {}

    def watch(self, tensors: Any) -> None:
        """Count tensors that are there already, in any nest."""
        for tensor in _tensors(tensors):
            self._watch(tensor)

    def restart_peak(self) -> None:
        self.peak = self.held

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer = storage._cdata
        if pointer in self._known:
            return
        size = storage.nbytes()
        self._known[pointer] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._gone, pointer)

    def _gone(self, pointer: int) -> None:
        self.held -= self._known.pop(pointer, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        self.watch([t for t in _tensors(found) if t.untyped_storage()._cdata not in given])
        return found


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def measured_peak(work: Any) -> tuple[Any, int]:
    """What ``work()`` gives back, and the most bytes that its tensors took."""
    tracker = MemoryTracker()
    with tracker, torch.no_grad():
        found = work()
    return found, tracker.peak
