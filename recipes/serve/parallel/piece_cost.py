"""``PieceCost``: seconds that a run of a step's tokens takes on one stage. Plain data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from blocks._checks import check
from blocks.pipeline.fit_cost import non_negative_least_squares
from recipes.serve.plain_batch import PlainBatch

FLOORS = (0, 8, 16, 32, 64, 128, 256)


class PieceSample(NamedTuple):
    """A measured run: its tokens, the positions they see in all, and the seconds it took."""

    num_tokens: int
    num_seen: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class PieceCost:
    """``fixed + per_token n + per_floor max(n, floor) + per_seen s`` seconds.

    n is the number of tokens, of any mix of prompts and decodes, s the sum over them of the
    positions each sees. Every term is at least zero.

    fixed: launches and the hand-over to the next stage. per_floor, floor: the part of the linear
    layers that takes as long for fewer tokens. per_seen: attention, and reading keys and values.
    """

    fixed: float = 0.0
    per_token: float = 0.0
    per_floor: float = 0.0
    floor: int = 0
    per_seen: float = 0.0

    def __call__(self, num_tokens: Any, num_seen: Any) -> Any:
        """Seconds; numbers or arrays."""
        floored = np.maximum(num_tokens, self.floor)
        linear = self.per_token * num_tokens + self.per_floor * floored
        return self.fixed + linear + self.per_seen * num_seen

    def over(self, batch: PlainBatch) -> Callable[[Any, Any], Any]:
        """The cost of runs of a batch, by length and first token, as ``slice_tokens`` asks."""
        seen = np.concatenate([[0], np.cumsum(batch.positions + 1)]).astype(np.float64)

        def cost(lengths: Any, starts: Any) -> Any:
            return self(lengths, seen[starts + lengths] - seen[starts])

        cost.takes_arrays = True  # type: ignore[attr-defined]
        return cost


def fit_piece_cost(samples: Sequence[PieceSample]) -> PieceCost:
    """The cost with the least squared relative error over measured runs.

    Raises:
        ValueError: fewer than three samples with a time above zero.
    """
    samples = [sample for sample in samples if sample.seconds > 0]
    check(len(samples) >= 3, "samples", "at least 3 with a time above 0", len(samples))
    seconds = np.array([sample.seconds for sample in samples])
    best: tuple[float, PieceCost] | None = None
    for floor in FLOORS:
        columns = [
            [1.0, s.num_tokens, s.num_seen, *([max(s.num_tokens, floor)] if floor else [])]
            for s in samples
        ]
        rows = np.array(columns) / seconds[:, None]
        loss, found = non_negative_least_squares(rows, np.ones(len(samples)))
        if best is None or loss < best[0] * (1 - 1e-9):
            floored = float(found[3]) if floor else 0.0
            fixed, token, seen = (float(value) for value in found[:3])
            best = loss, PieceCost(fixed, token, floored, floor if floored else 0, seen)
    assert best is not None
    return best[1]
