"""Long lists of equal blocks, shortened for tracing."""

import dataclasses
import inspect
import linecache
import sys
from typing import Any

from torch import nn

from recipes.plan.trace.repeated_blocks import BlockList

KEPT_UNITS = 4
"""Two at the ends, and two between that have to turn out alike."""


@dataclasses.dataclass(frozen=True)
class Shortened:
    """A list of blocks of which only some are traced.

    path: of the list.
    first: the first block of the run that repeats.
    period: how many blocks a unit has, after which the kinds repeat.
    num_units: how many units the run has; ``KEPT_UNITS`` of them are traced.
    """

    path: str
    first: int
    period: int
    num_units: int

    @property
    def num_copies(self) -> int:
        """Units that are not traced."""
        return self.num_units - KEPT_UNITS

    @property
    def num_blocks_left_out(self) -> int:
        return self.num_copies * self.period

    def unit_of(self, block: int) -> int | None:
        """Which of the traced units a traced block is in; None for those beside the run."""
        unit, beside = divmod(block - self.first, self.period)
        del beside
        return unit if 0 <= unit < KEPT_UNITS else None

    def name_of(self, block: int, unit: int) -> int:
        """The number in the whole list of a traced block.

        Args:
            unit: which of the units of the whole list it stands for, if it is in one; a traced one
                behind the copies counts from the end.
        """
        traced = self.unit_of(block)
        if traced is None:
            return block if block < self.first else block + self.num_blocks_left_out
        return block + (unit - traced) * self.period


def find_run(blocks: BlockList, max_period: int = 8) -> Shortened | None:
    """The run of units that leaves out most blocks when it is shortened; None if none does.

    >>> find_run(BlockList("h", tuple(map(str, range(9))), (0, 1, 1, 1, 1, 1, 1, 1, 2)))
    Shortened(path='h', first=1, period=1, num_units=7)
    """
    kinds = blocks.kinds
    best: Shortened | None = None
    for period in range(1, max_period + 1):
        start = 0
        while start + period < len(kinds):
            stop = start + period
            while stop < len(kinds) and kinds[stop] == kinds[stop - period]:
                stop += 1
            run = Shortened(blocks.path, start, period, (stop - start) // period)
            if run.num_copies > 0 and (
                best is None or run.num_blocks_left_out > best.num_blocks_left_out
            ):
                best = run
            start = stop - period + 1
    return best


def shorten(module: nn.Module, run: Shortened) -> None:
    """Take the blocks out of a module that ``run`` leaves out, and number the others anew."""
    blocks = module.get_submodule(run.path)
    kept = list(blocks._modules.values())
    begin = run.first + KEPT_UNITS * run.period
    del kept[begin : begin + run.num_blocks_left_out]
    blocks._modules.clear()
    for number, block in enumerate(kept):
        blocks._modules[str(number)] = block
    blocks.__class__ = _unmeasured(type(blocks))


class NotRepeating(Exception):
    """The blocks in the middle do not do the same, or something else depends on how many."""


def _unmeasured(kind: type) -> type:
    """A list of modules that says no when it is asked how long it is, but for a loop over it."""

    def measure(self: Any) -> int:
        caller = sys._getframe(1)
        line = linecache.getline(caller.f_code.co_filename, caller.f_lineno)
        looped = any(word in line for word in ("range(len(", "list(", "tuple(", "reversed("))
        if not looped and caller.f_code.co_filename != inspect.getfile(nn.ModuleList):
            raise NotRepeating(f"{caller.f_code.co_filename}:{caller.f_lineno} counts the blocks")
        return kind.__len__(self)

    return type(kind.__name__, (kind,), {"__len__": measure})
