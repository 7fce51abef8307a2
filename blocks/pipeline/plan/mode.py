"""``Mode``: how a step is run, apart from its slices and its order. Needs no torch."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a planner chooses beside slices and order.

    num_chunks: stages on every rank.
    splits_weights: whether weight gradients are actions of their own.
    num_recomputing: how many ranks, from the first, recompute their activations.
    """

    num_chunks: int = 1
    splits_weights: bool = False
    num_recomputing: int = 0
