"""What a stage is called with: ``SliceContext``, and the state its slices share."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class SliceContext:
    """Which token slice a stage works on, and what it may use beside its inputs.

    sequence: index of the sequence (microbatch) in the step.
    slice: index of the slice in the sequence.
    start, stop: the tokens ``[start, stop)`` of the sequence that the slice holds.
    data: whole tensors of the sequence (tokens, labels, bounds of documents, ...), the same on
        every rank.
    state: belongs to the stage from its first forward of the sequence to its last backward of it;
        empty at first. Keys and values of the slices so far go here.
    key: (seed, step, id of the sequence, slice, stage): what ``generator`` draws from.
    device: where the stage runs.
    """

    sequence: int
    slice: int
    start: int
    stop: int
    data: Mapping[str, Tensor]
    state: dict[Any, Any]
    key: tuple[int, ...] = ()
    device: torch.device | str = "cpu"

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """Random numbers by content: the same whatever the schedule, and in a recomputation.

        >>> first, again = (SliceContext(0, 1, 4, 8, {}, {}, (7, 0, 0, 1, 2)) for _ in range(2))
        >>> torch.equal(torch.rand(3, generator=first.generator),
        ...             torch.rand(3, generator=again.generator))
        True
        """
        generator = torch.Generator(self.device)
        return generator.manual_seed(content_seed(self.key))

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


def content_seed(key: tuple[int, ...]) -> int:
    """A seed below 2**63 that differs wherever the numbers differ.

    >>> content_seed((1, 23)) == content_seed((12, 3))
    False
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@runtime_checkable
class StageModule(Protocol):
    """Any ``nn.Module`` that is called like this.

    Inputs are the outputs of the stages it takes input from, in ascending order of those stages,
    flattened; a stage without any reads ``context.data``. A stage nobody takes input from returns
    the sum of its slice's losses, a scalar. Forwards of a sequence come in ascending order of
    slices, backwards in descending order; each slice has an autograd graph of its own, and what
    slices share lives in ``context.state``. A forward may be done again before its backward, with
    equal inputs and the state as later slices left it: writing keys and values where they already
    stand is fine, appending is not.
    """

    def __call__(self, *inputs: Tensor, context: SliceContext) -> Tensor | tuple[Tensor, ...]: ...
