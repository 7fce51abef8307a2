"""``Action``: one thing a rank does to one token slice of one sequence. Needs no torch."""

import re
from enum import StrEnum
from typing import NamedTuple

from blocks._checks import fail


class Kind(StrEnum):
    """What is done. The first five compute; the others move tensors between stages."""

    FORWARD = "F"
    RECOMPUTE = "R"
    """Forward again before the backward, where its activations were not kept."""
    BACKWARD = "B"
    """Gradients of the stage's inputs and of the prefix's keys and values."""
    WEIGHT = "W"
    """Gradients of the weights, from what ``BACKWARD`` put aside."""
    FULL_BACKWARD = "BW"
    """``BACKWARD`` and ``WEIGHT`` in one."""
    SEND_FORWARD = "SF"
    RECEIVE_FORWARD = "RF"
    SEND_BACKWARD = "SB"
    RECEIVE_BACKWARD = "RB"

    @property
    def computes(self) -> bool:
        return self in _COMPUTE

    @property
    def is_backward(self) -> bool:
        """Whether gradients of inputs come out of it."""
        return self in (Kind.BACKWARD, Kind.FULL_BACKWARD)


_COMPUTE = (Kind.FORWARD, Kind.RECOMPUTE, Kind.BACKWARD, Kind.WEIGHT, Kind.FULL_BACKWARD)


class Action(NamedTuple):
    """What one rank does to one token slice.

    kind: what is done.
    stage: which part of the model, in the order data flows, from 0.
    chunk: which of its rank's stages that is, from 0.
    sequence: which sequence (microbatch) of the step.
    slice: which token slice of the sequence.
    peer: the other stage of a send or receive; -1 otherwise.

    >>> Action(Kind.FORWARD, 2, 0, 3, 5)
    F2(3,5)
    >>> Action.parse("SF0>1(3,5)", chunk=0).peer
    1
    """

    kind: Kind
    stage: int
    chunk: int
    sequence: int
    slice: int
    peer: int = -1

    def __repr__(self) -> str:
        peer = "" if self.peer < 0 else f">{self.peer}"
        return f"{self.kind.value}{self.stage}{peer}({self.sequence},{self.slice})"

    def on(self, kind: Kind, peer: int = -1) -> "Action":
        """Another action on the same slice at the same stage."""
        return Action(kind, self.stage, self.chunk, self.sequence, self.slice, peer)

    @classmethod
    def parse(cls, text: str, chunk: int) -> "Action":
        """The action ``repr`` prints as ``text``.

        Raises:
            ValueError: a text that is none.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise fail("action", "a text like F2(3,5) or SF0>1(3,5)", repr(text))
        kind, stage, peer, sequence, piece = found.groups()
        return cls(
            Kind(kind),
            int(stage),
            chunk,
            int(sequence),
            int(piece),
            -1 if peer is None else int(peer),
        )


_TEXT = re.compile(r"(BW|SF|RF|SB|RB|F|R|B|W)(\d+)(?:>(\d+))?\((\d+),(\d+)\)")
