"""``HeldBytes``: counts the bytes of all tensors made while it is active that are still alive."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldBytes(TorchDispatchMode):
    """While active, looks at what every operation returns, in forwards and backwards alike.

    Tensors that share memory count once, by the memory. Made for devices whose allocator keeps no
    count, such as the CPU; it slows every operation down, so times taken beside it say nothing.

    >>> with HeldBytes() as held:
    ...     kept = torch.zeros(8, dtype=torch.float32)
    ...     gone = kept + 1
    ...     del gone
    ...     held.count()
    32
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if _is(t)}
        for tensor in filter(_is, tree_leaves(found)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # an operation in place makes nothing
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    def count(self) -> int:
        """Bytes alive now."""
        self._made = {key: item for key, item in self._made.items() if not item[0].expired()}
        return sum(num_bytes for _, num_bytes in self._made.values())


def _is(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided
