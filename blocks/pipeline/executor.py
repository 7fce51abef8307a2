"""``Executor``: one rank's share of a training step, as a schedule has it."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline.action import Kind
from blocks.pipeline.batch import Batch, check_batch, per_sequence
from blocks.pipeline.forward_schedule import forward_schedule
from blocks.pipeline.lower import lower
from blocks.pipeline.mailbox import Mailbox, sends_to
from blocks.pipeline.moves import Move, moves
from blocks.pipeline.outbox import Outbox
from blocks.pipeline.parameter_gradients import check_ties, leave_gradients
from blocks.pipeline.proven import proven
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.stage import StageModule
from blocks.pipeline.stage_runner import Key, StageRunner
from blocks.pipeline.step_run import StepRun, Wire
from blocks.pipeline.ties import Tie
from blocks.pipeline.trace import UNMEASURED, TraceEvent
from blocks.pipeline.transport import Transport
from blocks.pipeline.watch import Watch


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
        report_after_s: float = 4.0,
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
            ValueError: what does not fit together, a schedule that cannot be run (see
                ``check_schedule``).
        """
        check(transport.rank == rank, "rank", f"the transport's, {transport.rank}", rank)
        size = schedule.num_ranks
        check(transport.num_ranks == size, "ranks of transport", size, transport.num_ranks)
        mine = [stage for stage, at in enumerate(schedule.placement) if at == rank]
        check(sorted(stages) == mine, f"stages of rank {rank}", mine, sorted(stages))
        for stage in recompute:
            known = 0 <= stage < schedule.num_stages
            check(known, "recompute", f"stages below {schedule.num_stages}", stage)
        check(receive_ahead >= 1, "receive_ahead", "at least 1", receive_ahead)
        self.rank, self.schedule = rank, proven(schedule)
        self._transport, self._wire, self._seed = transport, wire, seed
        self._device, self._on_event = torch.device(device), on_event
        self._ties = [dict(tie) for tie in ties]
        check_ties(self._ties, schedule, stages)
        self._watch = Watch(
            transport,
            report_after_s=report_after_s,
            abort_after_s=abort_after_s,
            on_report=on_report,
        )
        self._receive_ahead = receive_ahead
        placement = schedule.placement
        self._outbox = Outbox(transport, self._watch, placement, synchronous=synchronous_sends)
        self._runners = {
            stage: self._runner(stages[stage], stage, stage in recompute) for stage in mine
        }
        self._moves, self._mailbox = self._prepare(self.schedule)
        self._looks: dict[tuple[int, ...], tuple[list[Move], Mailbox]] = {}
        self._num_steps = 0

    def _runner(self, module: StageModule, stage: int, recompute: bool) -> StageRunner:
        program, counts = self.schedule.programs[self.rank], self.schedule.num_slices
        every = [(q, s) for q, count in enumerate(counts) for s in range(count)]

        def slices(kind: Kind) -> list[Key]:
            return [(a.sequence, a.slice) for a in program if (a.kind, a.stage) == (kind, stage)]

        recomputed = every if recompute else slices(Kind.RECOMPUTE)
        tied = [tie[stage] for tie in self._ties if stage in tie]
        split = slices(Kind.WEIGHT)
        return StageRunner(module, counts, recomputed=recomputed, split=split, tied=tied)

    def _prepare(self, schedule: Schedule) -> tuple[list[Move], Mailbox]:
        sends = sends_to(schedule, self.rank)
        mailbox = Mailbox(self._transport, self._watch, sends, self._receive_ahead)
        return moves(schedule, schedule.programs[self.rank]), mailbox

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
        check_batch(data, bounds, self.schedule.num_slices)
        index = self._num_steps if step_index is None else step_index
        lanes = per_sequence("lanes", lanes, [0] * len(data))
        ids = per_sequence("sequence_ids", sequence_ids, range(len(data)))
        batch = Batch(data, bounds, ids, self._seed, index, self._device, loss_scale)
        try:
            for runner in self._runners.values():
                runner.begin(lanes)
            losses = self._run(batch, self._moves, self._mailbox, gradients=True)
            every = sorted(set(lanes))
            leave_gradients(
                self._runners, self._ties, every, self.schedule, self._transport, self._watch
            )
            self._outbox.wait()
        except BaseException as error:
            self._give_up(error)
            raise
        self._num_steps = index + 1
        return StepResult(losses)

    def forward_only(
        self,
        data: Sequence[Mapping[str, Tensor]],
        bounds: Sequence[Sequence[int]],
        *,
        sequence_ids: Sequence[int] | None = None,
    ) -> StepResult:
        """Losses of any number of sequences, without gradients; put the stages into ``eval`` first
        where that matters.

        Args:
            data, bounds, sequence_ids: see ``step``; as many sequences and slices as you like, the
                same on all ranks.

        Raises:
            ValueError: data that does not fit together.
            PipelineStuck: another rank does not go on.
        """
        counts = tuple(len(found) - 1 for found in bounds)
        check_batch(data, bounds, counts)
        ids = per_sequence("sequence_ids", sequence_ids, range(len(data)))
        if counts not in self._looks:
            schedule = forward_schedule(self.schedule.placement, counts, self.schedule.edges)
            self._looks[counts] = self._prepare(lower(schedule))
        batch = Batch(data, bounds, ids, self._seed, 0, self._device)
        try:
            losses = self._run(batch, *self._looks[counts], gradients=False)
            self._outbox.wait()
        except BaseException as error:
            self._give_up(error)
            raise
        return StepResult(losses)

    def _run(
        self, batch: Batch, program: list[Move], mailbox: Mailbox, *, gradients: bool
    ) -> dict[Key, Tensor]:
        run = StepRun(batch, self._runners, mailbox, self._outbox, self._wire, gradients=gradients)
        post_status, on_event = self._transport.post_status, self._on_event
        for move in program:
            post_status(move.text)
            self._outbox.let_go()  # what was delivered since the last send
            if on_event is None or move.posts or not gradients:
                run.do(move)
            else:
                start, cpu = time.monotonic_ns(), time.thread_time_ns()
                run.do(move)
                cpu = time.thread_time_ns() - cpu
                end = time.monotonic_ns()
                on_event(TraceEvent(self.rank, move.action, start, end, cpu, UNMEASURED))
        post_status("the end of the step")
        run.check_done()
        return run.losses

    def _give_up(self, error: BaseException) -> None:
        self._transport.give_up(f"rank {self.rank} failed: {error!r}")
        self._outbox.clear()
        for runner in self._runners.values():
            runner.begin([0] * self.schedule.num_sequences)
