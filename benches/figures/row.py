"""One claimed figure: what is claimed, the target, and how it is measured."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measurement found.

    text: the figure as shown, with unit and spread (``3.1 us (2.9-3.4)``).
    ok: whether it meets the target; None where there is none.
    """

    text: str
    ok: bool | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A claim and the function that measures it afresh.

    claim: what is said, in the words of the README.
    target: the figure to reach, with unit; empty where the figure is only reported.
    command: how a reader re-measures just this.
    measure: does it; raises if it cannot.
    nightly: takes minutes; left out of a plain run.
    """

    claim: str
    target: str
    command: str
    measure: Callable[[], Measured]
    nightly: bool = False
