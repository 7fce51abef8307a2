"""``Batch``: what a step works on."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline._bounds import check_bounds


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step works on.

    data: for every sequence its whole tensors.
    bounds: for every sequence the token at which each slice begins, and the end.
    sequence_ids, seed, index: of the sequences and of the step, for random numbers.
    """

    data: Sequence[Mapping[str, Tensor]]
    bounds: Sequence[Sequence[int]]
    sequence_ids: Sequence[int]
    seed: int
    index: int
    device: torch.device
    loss_scale: float = 1.0

    def num_tokens(self, sequence: int, piece: int) -> int:
        return self.bounds[sequence][piece + 1] - self.bounds[sequence][piece]


def per_sequence(name: str, given: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """What was given for every sequence, or the default.

    Raises:
        ValueError: another number of entries.
    """
    found = default if given is None else given
    check(len(found) == len(default), name, f"one a sequence, {len(default)}", len(found))
    return found


def check_batch(
    data: Sequence[Mapping[str, Tensor]],
    bounds: Sequence[Sequence[int]],
    num_slices: tuple[int, ...],
) -> None:
    """
    Raises:
        ValueError: data that does not fit together or has other slices than ``num_slices``.
    """
    check_bounds(bounds, num_slices)
    check(len(data) == len(bounds), "data", f"of {len(bounds)} sequences", len(data))
