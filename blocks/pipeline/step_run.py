"""``StepRun``: the tensors of one step on their ways between a rank's stages and the others."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.batch import Batch
from blocks.pipeline.mailbox import Mailbox
from blocks.pipeline.moves import Move
from blocks.pipeline.outbox import Outbox
from blocks.pipeline.stage import SliceContext
from blocks.pipeline.stage_runner import Key, StageRunner
from blocks.pipeline.transport import TensorSpec

Wire = Callable[[int, int, int], Sequence[TensorSpec]]
"""(source stage, target stage, tokens of the slice) -> what the source stage puts out."""


class StepRun:
    """Does a rank's moves, one method for each kind of action.

    Invariants:
        1. ``ready`` holds tensors that were made or received and not yet taken.
        2. A stage's state of a sequence is held from its first forward to its last backward (to
           its last forward without gradients).
        3. When all moves are done, nothing is held but losses.
    """

    def __init__(
        self,
        batch: Batch,
        runners: Mapping[int, StageRunner],
        mailbox: Mailbox,
        outbox: Outbox,
        wire: Wire,
        *,
        gradients: bool,
    ) -> None:
        self._batch, self._runners = batch, runners
        self._mailbox, self._outbox, self._wire = mailbox, outbox, wire
        self._gradients = gradients
        self._states: dict[tuple[int, int], dict] = {}  # by stage and sequence
        self._ready: dict[Action, tuple[Tensor, ...]] = {}
        self._counts: dict[tuple[int, Key], list[int]] = {}  # floating inputs from each source
        self.losses: dict[Key, Tensor] = {}
        send, receive = self._send, self._receive
        self.methods: dict[Kind, Callable[[Move], None]] = {
            Kind.FORWARD: self._forward,
            Kind.RECOMPUTE: lambda move: self._runner(move).recompute(move.key),
            Kind.BACKWARD: self._backward,
            Kind.WEIGHT: lambda move: self._runner(move).weights(move.key),
            Kind.FULL_BACKWARD: self._backward,
            Kind.SEND_FORWARD: send,
            Kind.RECEIVE_FORWARD: receive,
            Kind.SEND_BACKWARD: send,
            Kind.RECEIVE_BACKWARD: receive,
        }
        mailbox.begin(self.specs)

    def do(self, move: Move) -> None:
        """Do one action; receives wait."""
        self.methods[move.action.kind](move)

    def _runner(self, move: Move) -> StageRunner:
        return self._runners[move.action.stage]

    def _forward(self, move: Move) -> None:
        stage, (sequence, piece) = move.action.stage, move.key
        inputs: list[Tensor] = []
        counts: list[int] = []
        for send in move.takes:
            sent = self._ready.pop(send)
            counts.append(sum(t.is_floating_point() for t in sent))
            inputs.extend(sent)
        runner, context = self._runners[stage], self._context(stage, sequence, piece)
        if self._gradients:
            self._counts[stage, move.key] = counts
            outputs = runner.forward(inputs, context)
        else:
            outputs = runner.look(inputs, context)
            if piece == len(self._batch.bounds[sequence]) - 2:
                del self._states[stage, sequence]
        for send in move.makes:
            self._ready[send] = outputs
        if not move.makes:
            loss, before = _loss(outputs, move.action), self.losses.get(move.key)
            self.losses[move.key] = loss if before is None else before + loss

    def _backward(self, move: Move) -> None:
        stage, (sequence, piece) = move.action.stage, move.key
        if move.takes:
            gradients = self._ready.pop(move.takes[0])
            for send in move.takes[1:]:
                more = self._ready.pop(send)
                gradients = tuple(a + b for a, b in zip(gradients, more, strict=True))
        else:
            gradients = (torch.full_like(self.losses[move.key], self._batch.loss_scale),)
        found = self._runners[stage].backward(move.key, gradients)
        counts = self._counts.pop((stage, move.key))
        for send, count in zip(move.makes, counts, strict=True):
            self._ready[send] = tuple(found[:count])
            found = found[count:]
        if piece == 0:
            del self._states[stage, sequence]

    def _send(self, move: Move) -> None:
        action = move.action
        tensors, expected = self._ready.pop(action), list(self.specs(action))
        sent = [TensorSpec.of(t) for t in tensors]
        if sent != expected:
            check(False, f"tensors of {action}", expected, sent, "wire says what stages put out")
        self._outbox.send(tensors, action)

    def _receive(self, move: Move) -> None:
        (send,) = move.makes
        if move.posts:
            self._mailbox.post(send)
        else:
            self._ready[send] = self._mailbox.take(send)

    def _context(self, stage: int, sequence: int, piece: int) -> SliceContext:
        batch = self._batch
        bounds = batch.bounds[sequence]
        return SliceContext(
            sequence=sequence,
            slice=piece,
            start=bounds[piece],
            stop=bounds[piece + 1],
            data=batch.data[sequence],
            state=self._states.setdefault((stage, sequence), {}),
            key=(batch.seed, batch.index, batch.sequence_ids[sequence], piece, stage),
            device=batch.device,
        )

    def specs(self, send: Action) -> Sequence[TensorSpec]:
        """What a send moves: a stage's outputs, or the gradients of the floating point ones."""
        num_tokens = self._batch.num_tokens(send.sequence, send.slice)
        if send.kind is Kind.SEND_FORWARD:
            return self._wire(send.stage, send.peer, num_tokens)
        specs = self._wire(send.peer, send.stage, num_tokens)
        return [spec for spec in specs if spec.dtype.is_floating_point]

    def check_done(self) -> None:
        """Check invariant 3."""
        assert not self._ready, f"{sorted(self._ready)} were made and not taken"
        assert not self._states, f"states of {sorted(self._states)} are left"
        assert not self._counts, f"{sorted(self._counts)} had no backward"


def _loss(outputs: tuple[Tensor, ...], action: Action) -> Tensor:
    if len(outputs) != 1 or outputs[0].dim() != 0:
        shapes = [list(t.shape) for t in outputs]
        check(False, f"outputs of {action}", "one scalar, the sum of the slice's losses", shapes)
    return outputs[0]
