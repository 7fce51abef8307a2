"""``Executor``: one rank's share of a training step, as a schedule has it."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.gradient_sums import tree_sum
from blocks.pipeline.mailbox import Mailbox, receive_of, sends_to
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.stage import SliceContext, StageModule
from blocks.pipeline.stage_runner import Key, StageRunner
from blocks.pipeline.ties import Tie, sum_tie, zeros_for
from blocks.pipeline.trace import UNMEASURED, TraceEvent
from blocks.pipeline.transfers import with_transfers
from blocks.pipeline.transport import Handle, TensorSpec, Transport
from blocks.pipeline.watch import Watch

Wire = Callable[[int, int, int], Sequence[TensorSpec]]
"""(source stage, target stage, tokens of the slice) -> what the source stage puts out."""


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step leaves beside gradients.

    losses: for every (sequence, slice) its summed loss, not scaled; empty on ranks without a
        stage that ends in a loss.
    """

    losses: dict[Key, Tensor]

    def loss(self) -> Tensor:
        """The sum of all slices' losses, added up in order."""
        found = [self.losses[key] for key in sorted(self.losses)]
        check(len(found) > 0, "rank", "one with the stage that ends in a loss", "another")
        return sum(found[1:], start=found[0])


@dataclasses.dataclass(frozen=True)
class _Step:
    """What the actions of one step share."""

    data: Sequence[Mapping[str, Tensor]]
    bounds: Sequence[Sequence[int]]
    loss_scale: float
    index: int
    sequence_ids: Sequence[int]
    states: dict[Key, dict] = dataclasses.field(default_factory=dict)
    losses: dict[Key, Tensor] = dataclasses.field(default_factory=dict)
    ready: dict[Action, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)
    num_grads: dict[Action, list[int]] = dataclasses.field(default_factory=dict)


class Executor:
    """Runs the actions of one rank and leaves gradients.

    Gradients do not depend on the schedule, the number of ranks or who waits for whom: each
    weight's are added up sequence by sequence, in each from the last slice to the first, and the
    gradients of an output that several stages use from the last of these to the first, as autograd
    does in one process.

    Invariants, between steps:
        1. No tensor of a slice is held, none is under way.
        2. Gradients of parameters are complete.
    """

    def __init__(
        self,
        rank: int,
        schedule: Schedule,
        stages: Mapping[int, StageModule],
        transport: Transport,
        *,
        wire: Wire,
        recompute: Collection[int] = (),
        ties: Sequence[Tie] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_event: Callable[[TraceEvent], None] | None = None,
        receive_ahead: int = 4,
        report_after_s: float = 5.0,
        abort_after_s: float = 600.0,
        on_report: Callable[[str], None] | None = None,
        synchronous_sends: bool = False,
    ) -> None:
        """
        Args:
            rank: whose program to follow.
            schedule: of all ranks, with or without sends and receives.
            stages: the stages of this rank, see ``StageModule``.
            transport: this rank's.
            wire: shapes and dtypes of what moves from one stage to another; the same on all ranks.
            recompute: stages whose forward keeps nothing but its inputs and is done again before
                the backward. Slices with a recomputation in their program need not be named.
            ties: weights that several stages share, each as {stage: name in that stage}; the same
                on all ranks.
            seed: of ``SliceContext.generator``.
            device: where the stages of this rank live.
            on_event: told of every action that was done, on ``time.monotonic_ns``.
            receive_ahead: number of receives posted before they are needed, for each other rank.
            report_after_s: seconds of waiting after which both ranks' actions are reported.
            abort_after_s: seconds of waiting after which ``PipelineStuck`` is raised.
            on_report: default: a line on standard error.
            synchronous_sends: wait for every send to be received before going on; for tests.

        Raises:
            ValueError: what does not fit together.
        """
        check(transport.rank == rank, "rank", f"the transport's, {transport.rank}", rank)
        size = schedule.num_ranks
        check(transport.num_ranks == size, "ranks of transport", size, transport.num_ranks)
        self.schedule = with_transfers(schedule)
        mine = [stage for stage, at in enumerate(schedule.placement) if at == rank]
        check(sorted(stages) == mine, f"stages of rank {rank}", mine, sorted(stages))
        for stage in recompute:
            known = 0 <= stage < schedule.num_stages
            check(known, "recompute", f"stages below {schedule.num_stages}", stage)
        self.rank, self._transport = rank, transport
        self._wire, self._seed, self._device = wire, seed, torch.device(device)
        self._ties, self._on_event = [dict(tie) for tie in ties], on_event
        self._synchronous = synchronous_sends
        self._watch = Watch(
            transport,
            report_after_s=report_after_s,
            abort_after_s=abort_after_s,
            on_report=on_report,
        )
        sends = sends_to(self.schedule, rank)
        self._mailbox = Mailbox(transport, self._watch, sends, receive_ahead)
        program = self.schedule.programs[rank]
        self._runners = {
            stage: StageRunner(
                stages[stage],
                schedule.num_slices,
                recomputed=_slices(schedule)
                if stage in recompute
                else _slices_of(program, Kind.RECOMPUTE, stage),
                split=_slices_of(program, Kind.WEIGHT, stage),
            )
            for stage in mine
        }
        do = {
            Kind.FORWARD: self._forward,
            Kind.RECOMPUTE: self._recompute,
            Kind.BACKWARD: self._backward,
            Kind.WEIGHT: self._weight,
            Kind.FULL_BACKWARD: self._full_backward,
            Kind.SEND_FORWARD: self._send,
            Kind.RECEIVE_FORWARD: self._receive,
            Kind.SEND_BACKWARD: self._send,
            Kind.RECEIVE_BACKWARD: self._receive,
        }
        self._program = [(do[action.kind], action, repr(action)) for action in program]
        self._sending: list[tuple[Handle, Action]] = []
        self._num_steps = 0

    def step(
        self,
        data: Sequence[Mapping[str, Tensor]],
        bounds: Sequence[Sequence[int]],
        *,
        loss_scale: float = 1.0,
        step_index: int | None = None,
        sequence_ids: Sequence[int] | None = None,
        lanes: Sequence[int] | None = None,
    ) -> StepResult:
        """Forward and backward of all sequences; adds to ``.grad`` of this rank's parameters.

        Args:
            data: for every sequence its whole tensors.
            bounds: for every sequence the token at which each slice begins, and the end.
            loss_scale: gradients are those of the summed loss times this.
            step_index: which step it is, for random numbers; default: counted from 0.
            sequence_ids: of the sequences, for random numbers; default: counted from 0.
            lanes: for every sequence the lane its gradients are summed in; lanes are then added as
                a balanced binary tree in ascending order. Default: one lane.

        Raises:
            ValueError: data that does not fit the schedule.
            PipelineStuck: another rank does not go on.
        """
        self._check_data(data, bounds)
        count = self.schedule.num_sequences
        lanes = [0] * count if lanes is None else list(lanes)
        ids = list(range(count)) if sequence_ids is None else list(sequence_ids)
        check(len(lanes) == count, "lanes", f"one a sequence, {count}", len(lanes))
        check(len(ids) == count, "sequence_ids", f"one a sequence, {count}", len(ids))
        index = self._num_steps if step_index is None else step_index
        step = _Step(data, bounds, loss_scale, index, ids)
        self._num_steps = index + 1
        try:
            for runner in self._runners.values():
                runner.begin(lanes)
            self._mailbox.begin(lambda send: self._specs(send, step))
            self._follow(step)
            self._finish(sorted(set(lanes)))
            self._wait_for_sends()
        except BaseException as error:
            self._give_up(error)
            raise
        return StepResult(step.losses)

    def _follow(self, step: _Step) -> None:
        transport, on_event = self._transport, self._on_event
        for do, action, text in self._program:
            transport.post_status(text)
            if on_event is None:
                do(action, step)
            else:
                start, cpu = time.monotonic_ns(), time.thread_time_ns()
                do(action, step)
                cpu = time.thread_time_ns() - cpu
                event = TraceEvent(self.rank, action, start, time.monotonic_ns(), cpu, UNMEASURED)
                on_event(event)

    def _forward(self, action: Action, step: _Step) -> None:
        _, stage, _, sequence, piece, _ = action
        inputs: list[Tensor] = []
        counts = step.num_grads[action.on(Kind.BACKWARD)] = []
        for source in self.schedule.sources(stage):
            sent = step.ready.pop(self._send_forward(source, stage, action))
            counts.append(sum(t.is_floating_point() for t in sent))
            inputs.extend(sent)
        outputs = self._runners[stage].forward(inputs, self._context(action, step))
        targets = self.schedule.targets(stage)
        for target in targets:
            step.ready[self._send_forward(stage, target, action)] = outputs
        if not targets:
            loss = _loss(outputs, action)
            before = step.losses.get((sequence, piece))
            step.losses[sequence, piece] = loss if before is None else before + loss

    def _recompute(self, action: Action, step: _Step) -> None:
        self._runners[action.stage].recompute((action.sequence, action.slice))

    def _backward(self, action: Action, step: _Step) -> None:
        stage, sequence, piece = action.stage, action.sequence, action.slice
        targets = self.schedule.targets(stage)
        if targets:
            gradients = step.ready.pop(self._send_backward(targets[-1], stage, action))
            for target in reversed(targets[:-1]):
                more = step.ready.pop(self._send_backward(target, stage, action))
                gradients = tuple(a + b for a, b in zip(gradients, more, strict=True))
        else:
            dtype = step.losses[sequence, piece].dtype
            gradients = (torch.tensor(step.loss_scale, dtype=dtype, device=self._device),)
        found = self._runners[stage].backward((sequence, piece), gradients)
        counts = step.num_grads.pop(action.on(Kind.BACKWARD))
        for source, count in zip(self.schedule.sources(stage), counts, strict=True):
            step.ready[self._send_backward(stage, source, action)] = tuple(found[:count])
            found = found[count:]
        if piece == 0:
            step.states.pop((stage, sequence), None)

    def _weight(self, action: Action, step: _Step) -> None:
        self._runners[action.stage].weights((action.sequence, action.slice))

    def _full_backward(self, action: Action, step: _Step) -> None:
        self._backward(action, step)

    def _send(self, action: Action, step: _Step) -> None:
        target = self.schedule.placement[action.peer]
        tensors = step.ready.pop(action)
        specs = self._specs(action, step)
        sent = [TensorSpec.of(t) for t in tensors]
        check(sent == list(specs), f"tensors of {action}", list(specs), sent, "see wire")
        for tensor in tensors:
            self._sending.append((self._transport.send(tensor, target, action), action))
        if self._synchronous:
            self._wait_for_sends()
        while self._sending and self._sending[0][0].done():
            self._sending.pop(0)

    def _receive(self, action: Action, step: _Step) -> None:
        kind = _SENDS[action.kind]
        _, stage, _, sequence, piece, peer = action
        send = Action(kind, peer, self.schedule.chunks[peer], sequence, piece, stage)
        step.ready[send] = self._mailbox.take(send)

    def _wait_for_sends(self) -> None:
        for handle, action in self._sending:
            other = self.schedule.placement[action.peer]
            self._watch.wait(handle, f"{receive_of(action)!r} of", other)
        self._sending.clear()

    def _finish(self, lanes: Sequence[int]) -> None:
        """Add the sums of all lanes and uses to ``.grad``."""
        sums: dict[int, dict[int, list[Tensor]]] = {}  # by stage and id of the parameter
        parameters = {}
        for stage, runner in self._runners.items():
            found = runner.finish()
            sums[stage] = {
                id(p): [of_lane[lane] for lane in sorted(of_lane)]
                for p, of_lane in zip(runner.parameters, found, strict=True)
            }
            for tie in self._ties:
                if stage in tie:
                    tied = _named(runner.stage, tie[stage])
                    index = [id(p) for p in runner.parameters].index(id(tied))
                    sums[stage][id(tied)] = zeros_for(lanes, tied, found[index])
            parameters.update({id(p): p for p in runner.parameters})
        self._sum_ties(sums)
        for stage in sorted(sums):
            for key, parts in sums[stage].items():
                if parts:
                    _accumulate(parameters[key], tree_sum(parts))

    def _sum_ties(self, sums: dict[int, dict[int, list[Tensor]]]) -> None:
        for number, tie in enumerate(self._ties):
            tied = {s: _named(self._runners[s].stage, tie[s]) for s in tie if s in self._runners}
            if not tied:
                continue
            self._transport.post_status(f"the sum of tied weight {number}")
            own = {stage: sums[stage].pop(id(p)) for stage, p in tied.items()}
            totals = sum_tie(number, self.schedule, self._transport, self._watch, tie, own)
            for stage in sorted(tied):
                once = all(tied[stage] is not tied[other] for other in tied if other < stage)
                if once:
                    sums[stage][id(tied[stage])] = totals

    def _context(self, action: Action, step: _Step) -> SliceContext:
        _, stage, _, sequence, piece, _ = action
        bounds = step.bounds[sequence]
        return SliceContext(
            sequence=sequence,
            slice=piece,
            start=bounds[piece],
            stop=bounds[piece + 1],
            data=step.data[sequence],
            state=step.states.setdefault((stage, sequence), {}),
            key=(self._seed, step.index, step.sequence_ids[sequence], piece, stage),
            device=self._device,
        )

    def _specs(self, send: Action, step: _Step) -> Sequence[TensorSpec]:
        bounds = step.bounds[send.sequence]
        num_tokens = bounds[send.slice + 1] - bounds[send.slice]
        if send.kind is Kind.SEND_FORWARD:
            return self._wire(send.stage, send.peer, num_tokens)
        specs = self._wire(send.peer, send.stage, num_tokens)
        return [spec for spec in specs if spec.dtype.is_floating_point]

    def _send_forward(self, source: int, target: int, at: Action) -> Action:
        chunk = self.schedule.chunks[source]
        return Action(Kind.SEND_FORWARD, source, chunk, at.sequence, at.slice, target)

    def _send_backward(self, source: int, target: int, at: Action) -> Action:
        chunk = self.schedule.chunks[source]
        return Action(Kind.SEND_BACKWARD, source, chunk, at.sequence, at.slice, target)

    def _check_data(
        self, data: Sequence[Mapping[str, Tensor]], bounds: Sequence[Sequence[int]]
    ) -> None:
        counts = tuple(len(found) - 1 for found in bounds)
        expected = self.schedule.num_slices
        check(counts == expected, "bounds", f"slices {expected} of the sequences", counts)
        check(len(data) == len(bounds), "data", f"of {len(bounds)} sequences", len(data))
        for found in bounds:
            ascending = found[0] == 0 and all(a < b for a, b in itertools.pairwise(found))
            check(ascending, "bounds", "tokens ascending from 0", list(found))

    def _give_up(self, error: BaseException) -> None:
        self._transport.give_up(f"rank {self.rank} failed: {error!r}")
        self._sending.clear()
        for runner in self._runners.values():
            runner.begin([0] * self.schedule.num_sequences)


_SENDS = {Kind.RECEIVE_FORWARD: Kind.SEND_FORWARD, Kind.RECEIVE_BACKWARD: Kind.SEND_BACKWARD}


def _loss(outputs: tuple[Tensor, ...], action: Action) -> Tensor:
    scalar = len(outputs) == 1 and outputs[0].dim() == 0
    shapes = [list(t.shape) for t in outputs]
    check(scalar, f"outputs of {action}", "one scalar, the sum of the slice's losses", shapes)
    return outputs[0]


def _slices(schedule: Schedule) -> list[Key]:
    return [(q, s) for q, count in enumerate(schedule.num_slices) for s in range(count)]


def _slices_of(program: Sequence[Action], kind: Kind, stage: int) -> list[Key]:
    return [(a.sequence, a.slice) for a in program if a.kind is kind and a.stage == stage]


def _named(stage: StageModule, name: str) -> Tensor:
    assert isinstance(stage, torch.nn.Module), "only modules have named weights"
    return stage.get_parameter(name)


@torch.no_grad()
def _accumulate(parameter: Tensor, total: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = total
    else:
        parameter.grad.add_(total)
