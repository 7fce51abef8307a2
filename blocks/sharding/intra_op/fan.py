"""``Fan``: a value, and what those that read it in one phase pay together. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.problem import Table

Codes = npt.NDArray[np.intp]


class Groups(NamedTuple):
    """Labels by the placement that each has for a tensor.

    codes: of every label the number of its placement.
    kinds: the numbers that there are, rising.
    order: labels, those of the same number side by side.
    starts: where in ``order`` each number begins.
    """

    codes: Codes
    kinds: Codes
    order: Codes
    starts: Codes

    @classmethod
    def of(cls, codes: Codes) -> "Groups":
        order = np.argsort(codes, kind="stable")
        kinds, starts = np.unique(codes[order], return_index=True)
        return cls(codes, kinds, order, starts)

    def numbered(self, kinds: Codes) -> "Groups":
        """The same with the numbers being indices of ``kinds``."""
        if len(kinds) == kinds[-1] + 1:
            return self
        codes, own = np.searchsorted(kinds, self.codes), np.searchsorted(kinds, self.kinds)
        return self._replace(codes=codes, kinds=own)

    def least(self, costs: Table) -> Table:
        """For every number in ``kinds`` the least cost of the labels that have it."""
        return np.minimum.reduceat(costs[self.order], self.starts)


class Fan:
    """A maker, its readers, and how they share out what reshardings cost.

    A resharding is paid once, however many readers want it. Shares of its price, which add up to
    the price, make each reader's costs a table of its own with the maker: what the tables cost
    together is never more than what is paid.

    Messages are costs by placement: ``to_maker`` what each reader and all behind it cost at least,
    ``to_reader`` the same of the maker's side; ``from_maker`` and ``from_reader`` what the sides
    cost without what they were told through this fan.

    Invariants:
    1. shares are not negative, and those of a resharding add up to its price;
    2. ``to_maker`` is the least of shares and ``from_reader`` over what the reader wants.

    Args:
        maker: variable.
        made: its labels by the placement in which it leaves the value.
        readers: variables, all later than the maker; one twice where it reads the value twice.
        wanted: for each the labels by the placement it wants.
        prices: of a resharding from each placement made to each that is wanted.
    """

    def __init__(
        self,
        maker: int,
        made: Groups,
        readers: Sequence[int],
        wanted: Sequence[Groups],
        prices: Table,
    ) -> None:
        self.maker, self.made, self.readers, self.wanted = maker, made, tuple(readers), wanted
        self.prices = prices
        count, (num_made, num_wanted) = len(self.readers), prices.shape
        self.from_reader = np.full((count, num_wanted), np.inf)
        for row, groups in zip(self.from_reader, wanted, strict=True):
            row[groups.kinds] = 0.0
        asked = np.isfinite(self.from_reader)
        equal = prices / np.maximum(asked.sum(axis=0), 1)
        self.shares = np.where(asked[:, None, :], equal, 0.0)
        self.from_maker = np.zeros((count, num_made))
        self.to_maker = (self.shares + self.from_reader[:, None, :]).min(axis=2)
        self.to_reader = np.zeros((count, num_wanted))

    def check_invariants(self) -> None:
        asked = np.isfinite(self.from_reader).any(axis=0)
        assert (self.shares >= 0).all()
        total = self.shares.sum(axis=0)[:, asked]
        assert np.allclose(total, self.prices[:, asked], rtol=1e-9, atol=0), "shares"
        least = (self.shares + self.from_reader[:, None, :]).min(axis=2)
        assert np.allclose(least, self.to_maker, rtol=1e-9, atol=1e-300), "messages"

    def share_out(self, costs: Table) -> None:
        """Readers to whom a resharding matters less pay more of it.

        What each reader's chain could cost more without becoming dearer than it is at best is
        evened out among the readers: none of their least costs falls.

        Args:
            costs: of the maker's labels, the part that goes along with each reader.
        """
        self.from_maker = self.made.least(costs) - self.to_maker
        around = self.from_maker[:, :, None] + self.from_reader[:, None, :]
        slack = around - (around + self.shares).min(axis=(1, 2), keepdims=True)
        rising = np.sort(slack, axis=0)
        counts = np.arange(1, len(rising) + 1)[:, None, None]
        level = ((self.prices + np.cumsum(rising, axis=0)) / counts).min(axis=0)
        self.shares = np.maximum(level - slack, 0.0)
        self.to_maker = (self.shares + self.from_reader[:, None, :]).min(axis=2)

    def tell_readers(self, costs: Table) -> None:
        """Send on what the maker's labels cost: the part that goes along with each reader."""
        self.from_maker = self.made.least(costs) - self.to_maker
        self.to_reader = (self.shares + self.from_maker[:, :, None]).min(axis=1)

    def tell_maker(self, reader: int, costs: Table) -> Table:
        """Send back what a reader's labels cost.

        Returns:
            What of it went along, by label of the reader.
        """
        groups = self.wanted[reader]
        least = groups.least(costs)
        row = self.from_reader[reader]
        row[groups.kinds] = least - self.to_reader[reader, groups.kinds]
        self.to_maker[reader] = (self.shares[reader] + row).min(axis=1)
        spread = np.empty(len(row))
        spread[groups.kinds] = least
        return spread[groups.codes]
