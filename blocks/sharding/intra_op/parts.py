"""``Parts``: a posed problem with some labels of every variable. Needs numpy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.elimination_order import Cliques
from blocks.sharding.intra_op.hints import Copy
from blocks.sharding.intra_op.problem import Problem, Table, Term

Labels = list[npt.NDArray[np.intp]]

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)
"""Of what a choice may be above the bound: how far labels are that a smaller part keeps."""


class Parts:
    """Parts of problems that differ in the costs of their labels alone.

    Args:
        problem: one of them.
        copies: shared copies.
    """

    def __init__(self, problem: Problem, copies: Sequence[Copy]) -> None:
        self.copies = copies
        self.cliques = Cliques.of(problem.num_labels, [t.variables for t in problem.terms])

    def near(
        self, least: Sequence[Table], bound: float, limit: float, max_entries: int | float
    ) -> tuple[Labels, bool] | None:
        """Labels with which a choice may cost as little as ``limit``, or those that come closest
        to the bound, as many as tables of ``max_entries`` allow.

        Args:
            least: what a choice with each label costs at least.
            bound: what any costs at least.

        Returns:
            The labels, and whether they are all; None where even a few are too many.
        """
        for share in SHARES:
            far = bound + share * (limit - bound)
            keep = [np.flatnonzero(costs <= max(far, float(costs.min()))) for costs in least]
            self._useful(keep)
            if self.cliques.largest([len(k) for k in keep]) <= max_entries:
                return keep, share == 1.0
        return None

    def of(self, problem: Problem, keep: Sequence[npt.NDArray[np.intp]]) -> Problem:
        """The part; equal arrays stay one array."""
        cut: dict[tuple, Table] = {}
        names = [labels.tobytes() for labels in keep]

        def part(table: Table, variables: tuple[int, ...]) -> Table:
            key = (id(table), *(names[v] for v in variables))
            if key not in cut:
                cut[key] = np.asarray(table[np.ix_(*(keep[v] for v in variables))])
            return cut[key]

        return Problem(
            tuple(part(table, (v,)) for v, table in enumerate(problem.seconds)),
            tuple(Term(t.variables, part(t.seconds, t.variables)) for t in problem.terms),
            tuple(part(table, (v,)) for v, table in enumerate(problem.memory)),
        )

    def _useful(self, keep: Labels) -> None:
        """Copies of what two readers or more may want, and none."""
        for copy in self.copies:
            often = np.zeros(copy.prices.shape[1])
            for reader, wants in zip(copy.readers, copy.wants, strict=True):
                wanted = np.zeros(len(often), dtype=bool)
                for codes in wants:
                    wanted[codes[keep[reader]]] = True
                often += wanted
            useful = often[copy.copied] > 1
            useful[0] = True
            keep[copy.variable] = np.flatnonzero(useful)


def whole(keep: Sequence[npt.NDArray[np.intp]], labels: Sequence[int]) -> tuple[int, ...]:
    """Labels of the problem from those of a part."""
    return tuple(int(own[at]) for own, at in zip(keep, labels, strict=True))
