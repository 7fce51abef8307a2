"""``Hints``: how the labels and variables of a posed graph hang together. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.problem import Table

Codes = npt.NDArray[np.intp]


class Copy(NamedTuple):
    """A shared copy: a variable whose label 0 is to have none.

    variable: of the problem.
    copied: for each of its labels the number of the placement that is shared; -1 for none.
    first_term: index of its readers' terms, over maker, copy and reader, one after the other; the
        one before is over maker and copy.
    maker: variable.
    makes: for each of its labels the number of the placement that it makes.
    readers: variables, later than the maker.
    wants: for every reader, and each of the times it reads the value, for each of its labels the
        number of the placement that it wants.
    prices: seconds from each placement made to each that is wanted.
    """

    variable: int
    copied: Codes
    first_term: int
    maker: int
    makes: Codes
    readers: tuple[int, ...]
    wants: tuple[tuple[Codes, ...], ...]
    prices: Table


class Hints(NamedTuple):
    """What is known of a posed problem beside its terms.

    copies: the shared copies, which are the last variables.
    choices: for each of the others what its labels do on every mesh axis, a row a label.
    """

    copies: tuple[Copy, ...]
    choices: tuple[npt.NDArray[np.int64], ...] = ()

    def restrict(self, keep: Sequence[Codes]) -> "Hints":
        """The same where only some labels of the variables are left."""
        copies = []
        for copy in self.copies:
            pairs = zip(copy.readers, copy.wants, strict=True)
            wants = tuple(tuple(codes[keep[v]] for codes in own) for v, own in pairs)
            copied, makes = copy.copied[keep[copy.variable]], copy.makes[keep[copy.maker]]
            copies.append(copy._replace(copied=copied, makes=makes, wants=wants))
        choices = tuple(own[k] for own, k in zip(self.choices, keep, strict=False))
        return Hints(tuple(copies), choices)
