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
    """

    choices: tuple[npt.NDArray[np.int64], ...]
    copies: tuple[Copy, ...]
