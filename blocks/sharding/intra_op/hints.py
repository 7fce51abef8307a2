"""``Hints``: how the labels and variables of a posed graph hang together. Needs numpy."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Copy(NamedTuple):
    """A shared copy: a variable whose label 0 is to have none.

    variable: of the problem.
    first_term: index of its readers' terms, over maker, copy and reader, one after the other.
    readers: variables.
    wants: for every reader the number of the placements each of its labels wants.
    """

    variable: int
    first_term: int
    readers: tuple[int, ...]
    wants: tuple[npt.NDArray[np.intp], ...]


class Hints(NamedTuple):
    """What a search for good choices may know of a problem.

    choices: for each of the first variables what its labels do on every mesh axis, a row a label.
    copies: the shared copies, which are the other variables.
    leads: for each of the first variables the term through which it had better follow another:
        an operation that does little but read a large tensor; -1 for none. The other is the first
        variable of the term, the follower its last.
    """

    choices: tuple[npt.NDArray[np.int64], ...]
    copies: tuple[Copy, ...]
    leads: tuple[int, ...] = ()
