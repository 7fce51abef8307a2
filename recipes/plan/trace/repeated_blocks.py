"""Blocks that a module repeats: the equal children of a list of modules."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

_DIFFER = (
    *("layer", "layer_idx", "layer_index", "layer_number", "layer_id", "block_idx", "index"),
    "training",
)
"""Attributes that say which of the blocks a module is in, or what it does not compute with."""


@dataclasses.dataclass(frozen=True)
class BlockList:
    """A list of modules with equal ones among them.

    path: of the list.
    keys: the names of its children, in order.
    kinds: a number for each; equal for children that do the same to other weights.
    """

    path: str
    keys: tuple[str, ...]
    kinds: tuple[int, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of its children."""
        return tuple(f"{self.path}.{key}" if self.path else key for key in self.keys)


class Blocks:
    """The children of all lists, numbered."""

    def __init__(self, lists: Sequence[BlockList]) -> None:
        self.paths = tuple(path for one in lists for path in one.paths)
        self.kinds = tuple(kind for one in lists for kind in one.kinds)
        self._number = {path: at for at, path in enumerate(self.paths)}

    def of(self, module: str) -> int:
        """The block a module is in or is, by its path; -1 for none."""
        while module and module not in self._number:
            module = module.rpartition(".")[0]
        return self._number.get(module, -1)


def find_block_lists(module: nn.Module) -> tuple[BlockList, ...]:
    """The outermost lists (``ModuleList``, ``Sequential``) that hold a module at least twice.

    Children are equal when they are of the same classes all the way down, with parameters and
    buffers of the same shapes and dtypes and with the same plain attributes, but for their number.
    A list without equal children is looked into.
    """
    return tuple(_find(module, "", {}))


def _find(module: nn.Module, path: str, numbers: dict[Any, int]) -> Iterator[BlockList]:
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module._modules) > 1:
        kinds = [numbers.setdefault(signature(one), len(numbers)) for one in module]
        if len(set(kinds)) < len(kinds) and _worth(module):
            yield BlockList(path, tuple(module._modules), tuple(kinds))
            return
    for name, child in module.named_children():
        yield from _find(child, f"{path}.{name}" if path else name, numbers)


def _worth(module: nn.ModuleList | nn.Sequential) -> bool:
    """Whether it holds more than leaves, or is at least meant as a list of layers."""
    if isinstance(next(iter(module)), (nn.Embedding, nn.EmbeddingBag)):
        return False  # tables side by side
    return isinstance(module, nn.ModuleList) or any(len(list(one.children())) for one in module)


def signature(module: nn.Module) -> Any:
    """What two modules that do the same to other weights have in common; hashable."""
    tensors = tuple(
        (name, tuple(one.shape), str(one.dtype), one.requires_grad)
        for owned in (module._parameters, module._buffers)
        for name, one in owned.items()
        if one is not None
    )
    plain = tuple(
        (name, repr(value))
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name not in _DIFFER and _is_plain(value)
    )
    children = tuple((name, signature(child)) for name, child in module.named_children())
    return (type(module).__qualname__, tensors, plain, children)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
