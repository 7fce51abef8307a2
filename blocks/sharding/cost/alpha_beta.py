"""``AlphaBeta``: a latency and a time a byte for every mesh axis; arithmetic is free. No torch."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from blocks._checks import check
from blocks.sharding.collective_bytes import Collective
from blocks.sharding.cost.step_bytes import reshard_steps, sent_bytes
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Placement

Exact = int | float | Fraction
"""Numbers; with whole numbers and fractions alone the costs are exact."""

ALPA_TIES = {
    "all_gather": Fraction(1, 10),
    "all_reduce": Fraction(1, 100),
    "reduce_scatter": Fraction(1, 1000),
    "all_to_all": Fraction(1, 1000),
}
"""What Alpa adds to each collective, so that of equals a reduce-scatter wins over an all-reduce
and that over an all-gather."""


@dataclasses.dataclass(frozen=True)
class AlphaBeta:
    """Costs of communication alone: ``alpha + beta * bytes that a rank sends``.

    With n ranks along an axis and a tensor of M bytes that is ``alpha + beta (n - 1) / n M`` for
    an all-gather or reduce-scatter, twice the bytes for an all-reduce, and ``(n - 1) / n^2 M`` for
    an all-to-all.

    mesh: the ranks.
    alpha, beta: for every axis of the mesh, in any unit of time.
    ties: is added to each collective; ``ALPA_TIES`` or nothing.
    all_to_all_penalty: what the bytes of an all-to-all count for; None for half the number of
        ranks, as Alpa has it.

    >>> cost = AlphaBeta(Mesh.of(data=4), (1,), (1,))
    >>> [cost.collective_s(c, 64, "data") for c in ("all_reduce", "all_gather", "all_to_all")]
    [97, 49, 25]

    Reference:
        Zheng et al., "Alpa", 2022, section 4.1, and the cost functions of its code.
    """

    mesh: Mesh
    alpha: tuple[Exact, ...]
    beta: tuple[Exact, ...]
    ties: dict[str, Fraction] = dataclasses.field(default_factory=dict, hash=False)
    all_to_all_penalty: Exact | None = None

    def __post_init__(self) -> None:
        count = len(self.mesh.axes)
        for name, values in (("alpha", self.alpha), ("beta", self.beta)):
            check(len(values) == count, name, f"one for each of {self.mesh.axes}", values)

    def collective_s(self, collective: Collective, num_bytes: int, axis: str) -> Any:
        """Time of one collective for a tensor of ``num_bytes``, whole along the axis."""
        return self._time(collective, sent_bytes(collective, num_bytes, self.mesh.size(axis)), axis)

    def reshard_s(
        self,
        shape: Sequence[int],
        itemsize: int,
        source: Sequence[Placement],
        target: Sequence[Placement],
    ) -> Any:
        """Time of the steps of ``plan_reshard``."""
        steps = reshard_steps(self.mesh, tuple(source), tuple(target))
        every = (self._time(s.collective, s.sent_bytes(shape, itemsize), s.axis) for s in steps)
        return sum(every)

    def compute_s(
        self, rule: OpRule, local_sizes: Sequence[int], num_bytes: int, dtype: str
    ) -> float:
        """Nothing: every strategy of Alpa's cuts the arithmetic alike."""
        return 0.0

    def _time(self, collective: Collective, sent: Exact, axis: str) -> Any:
        index = self.mesh.index(axis)
        num_ranks = self.mesh.sizes[index]
        if num_ranks == 1 or collective in ("narrow", "mask"):
            return 0
        penalty: Exact = 1
        if collective == "all_to_all":
            half = Fraction(num_ranks, 2)
            penalty = half if self.all_to_all_penalty is None else self.all_to_all_penalty
        time: Any = self.alpha[index] + self.beta[index] * sent * penalty
        tie = self.ties.get(collective, 0)
        found: Any = time + (float(tie) if isinstance(time, float) else tie)
        if isinstance(found, Fraction) and found.denominator == 1:
            return found.numerator
        return found
