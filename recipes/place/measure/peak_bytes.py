"""``PeakBytes``: the most memory that a computation held at one moment."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Follows every tensor that is made in its context, on any device, in this thread.

    What was there before counts nothing, and nor does what a kernel takes and gives back inside.

    peak_bytes: most so far.

    >>> before = torch.zeros(1000)
    >>> with PeakBytes() as followed:
    ...     total = (before + 1).sum() + before.view(10, 100)[0].double().sum()
    >>> followed.peak_bytes  # the first sum's 4000 bytes, and its result
    4004
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self._num_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor.untyped_storage(), 0)  # what is not known came from outside
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            self._follow(storage, storage.nbytes())
        return found

    def _follow(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self._num_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._num_bytes)
        weakref.finalize(storage, self._freed, key, num_bytes)

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._num_bytes -= num_bytes


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
