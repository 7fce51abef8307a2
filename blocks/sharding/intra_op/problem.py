"""``Problem``: one label for every variable, at least cost. Plain arrays; needs numpy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks._checks import check, fail

Table = npt.NDArray[np.float64]
"""Seconds, or bytes, with an axis for every variable."""


EXACT = 1e-12
"""Share of the costs that is taken for rounding."""


class Term(NamedTuple):
    """What some variables cost together: an edge, where they are two.

    variables: which, each once.
    seconds: an axis for each of them, in the same order; infinite for what may not be.
    """

    variables: tuple[int, ...]
    seconds: Table


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Choose a label for every variable so that the seconds of all together are least.

    seconds: of every label, an array a variable; infinite for labels that may not be chosen.
    terms: what variables cost together. Equal tables had better be one array: what is worked out
        from an array is worked out once.
    memory: bytes of every label; empty where memory is not asked about.

    >>> import numpy as np
    >>> edge = Term((0, 1), np.array([[0.0, 3.0], [5.0, 0.0]]))
    >>> problem = Problem((np.array([1.0, 0.0]), np.array([0.0, 2.0])), (edge,))
    >>> problem.value((0, 0)), problem.value((1, 1))
    (1.0, 2.0)
    """

    seconds: tuple[Table, ...]
    terms: tuple[Term, ...] = ()
    memory: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        counts = self.num_labels
        empty = [at for at, count in enumerate(counts) if not count]
        check(not empty, "labels", "at least one for every variable", f"none for {empty[:5]}")
        for variables, seconds in self.terms:
            known = all(0 <= at < len(counts) for at in variables)
            once = len(set(variables)) == len(variables) > 0
            check(
                known and once, "variables of a term", f"each once, below {len(counts)}", variables
            )
            shape = tuple(counts[at] for at in variables)
            check(seconds.shape == shape, f"seconds of {variables}", shape, seconds.shape)
        if self.memory:
            bytes_of = tuple(map(len, self.memory))
            check(bytes_of == counts, "memory", "a number for every label", bytes_of)

    @functools.cached_property
    def num_labels(self) -> tuple[int, ...]:
        """Of every variable."""
        return tuple(map(len, self.seconds))

    def value(self, labels: Sequence[int]) -> float:
        """Seconds of a choice of labels."""
        self._check(labels)
        total = sum(float(s[at]) for s, at in zip(self.seconds, labels, strict=True))
        for variables, seconds in self.terms:
            total += float(seconds[tuple(labels[v] for v in variables)])
        return total

    def bytes(self, labels: Sequence[int]) -> float:
        """Memory of a choice of labels; 0 where it is not asked about."""
        self._check(labels)
        return sum(float(m[at]) for m, at in zip(self.memory, labels, strict=False))

    def priced(self, seconds_per_byte: int | float) -> "Problem":
        """The same where every byte costs time, and memory is no longer asked about."""
        if not seconds_per_byte:
            return Problem(self.seconds, self.terms)
        made: dict[tuple[int, int], Table] = {}
        for s, m in zip(self.seconds, self.memory, strict=True):
            if (id(s), id(m)) not in made:
                made[id(s), id(m)] = s + seconds_per_byte * m
        pairs = zip(self.seconds, self.memory, strict=True)
        return Problem(tuple(made[id(s), id(m)] for s, m in pairs), self.terms)

    def binding(self) -> "Problem":
        """The same without terms that cost nothing whatever is chosen."""
        costs = {id(table): bool(table.any()) for _, table in self.terms}
        if all(costs.values()):
            return self
        terms = tuple(term for term in self.terms if costs[id(term.seconds)])
        return Problem(self.seconds, terms, self.memory)

    def only_memory(self) -> "Problem":
        """Bytes take the place of seconds: what may not be chosen stays so."""
        made: dict[tuple[int, int], Table] = {}
        for s, m in zip(self.seconds, self.memory, strict=True):
            if (id(s), id(m)) not in made:
                made[id(s), id(m)] = np.where(np.isfinite(s), m, np.inf)
        pairs = zip(self.seconds, self.memory, strict=True)
        seconds = tuple(made[id(s), id(m)] for s, m in pairs)
        kept: dict[int, Table] = {}
        terms = []
        for variables, table in self.terms:
            if id(table) not in kept:
                kept[id(table)] = np.where(np.isfinite(table), 0.0, np.inf)
            terms.append(Term(variables, kept[id(table)]))
        return Problem(seconds, tuple(terms))

    def _check(self, labels: Sequence[int]) -> None:
        if len(labels) != len(self.seconds):
            raise fail("labels", f"one for each of {len(self.seconds)} variables", len(labels))


class Minimum(NamedTuple):
    """A choice of labels.

    seconds: of it.
    bound: no choice costs less; the same number where the choice is proved to be best.
    """

    labels: tuple[int, ...]
    seconds: float
    bound: float
