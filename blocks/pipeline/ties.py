"""Gradients of tied weights: those of all uses, summed in stage order across ranks."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.transport import Handle, TensorSpec, Transport
from blocks.pipeline.watch import Watch

Tie = Mapping[int, str]
"""For every stage that uses a weight, the weight's name there."""


def sum_tie(
    number: int,
    schedule: Schedule,
    transport: Transport,
    watch: Watch,
    tie: Tie,
    own: Mapping[int, Sequence[Tensor]],
) -> list[Tensor]:
    """Sum the gradients of a tied weight in stage order; every rank that uses it gets the sums.

    The lowest stage's rank adds up, so the bits are those of one process, and hands the sums out.

    Args:
        number: of the tie, for reports.
        own: for every stage of this rank that uses the weight, its gradient in every lane.
    """
    placement, first = schedule.placement, min(tie)
    owner, rank = placement[first], transport.rank
    lanes = range(len(next(iter(own.values()))))
    spec = TensorSpec.of(next(iter(own.values()))[0])

    def action(stage: int, peer: int, lane: int) -> Action:
        return Action(Kind.SEND_BACKWARD, stage, schedule.chunks[stage], lane, number, peer)

    def receive(stage: int, peer: int, lane: int, source: int) -> Tensor:
        send = action(stage, peer, lane)
        handle = transport.receive(spec, source, send)
        return watch.wait(handle, f"tied weight {number} of stage {stage} from", source)

    others = sorted({placement[stage] for stage in tie} - {owner})
    handles: list[tuple[Handle, int]] = []
    if rank != owner:
        for stage in sorted(own):
            for lane in lanes:
                handle = transport.send(own[stage][lane], owner, action(stage, first, lane))
                handles.append((handle, owner))
        sums = [receive(first, max(own), lane, owner) for lane in lanes]
    else:
        parts = {stage: list(own[stage]) for stage in own}
        for other in others:
            for stage in sorted(stage for stage in tie if placement[stage] == other):
                parts[stage] = [receive(stage, first, lane, other) for lane in lanes]
        sums = []
        for lane in lanes:
            total = parts[first][lane]
            for stage in sorted(tie)[1:]:
                total = total + parts[stage][lane]
            sums.append(total)
        for other in others:
            peer = max(stage for stage in tie if placement[stage] == other)
            for lane in lanes:
                handles.append(
                    (transport.send(sums[lane], other, action(first, peer, lane)), other)
                )
    for handle, other in handles:
        watch.wait(handle, f"tied weight {number} to be taken by", other)
    return sums
