"""``isolate_rank``: one rank of a pipeline on a device of its own, with nobody at the other ends.

What each rank of a large pipeline takes and holds can so be measured on one device, rank after
rank; the simulator then puts the ranks together.
"""

import dataclasses
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blocks._checks import check_positive
from blocks.pipeline.action import Action
from blocks.pipeline.executor import Executor
from blocks.pipeline.isolated_transport import IsolatedTransport
from blocks.pipeline.measured import Clock, durations_s
from blocks.pipeline.replay import compute_only
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import simulate
from blocks.pipeline.stage import StageModule
from blocks.pipeline.step_run import Wire
from blocks.pipeline.timeline import Number, Timeline
from blocks.pipeline.trace import Origin, Trace, merge


@dataclasses.dataclass(frozen=True)
class Isolated:
    """A step whose ranks ran one after another.

    traces: one a repetition, with the events of all ranks, each rank's from its own zero on.
    timeline: the step, simulated with the median of every action.
    peak_bytes: for every rank the most it held after an action, beyond what it held before the
        step: activations, keys and values, accumulators, and the gradients of its weights.
    """

    traces: tuple[Trace, ...]
    timeline: Timeline
    peak_bytes: tuple[int, ...]

    @property
    def live_bytes(self) -> tuple[tuple[int, ...], ...]:
        """For every rank the bytes it held after each compute action, for ``view.figure``."""
        return tuple(
            tuple(event.live_bytes for event in events if event.action.kind.computes)
            for events in self.traces[0].by_rank
        )


def isolate_ranks(
    schedule: Schedule,
    make_stages: Callable[[int], Mapping[int, StageModule]],
    data: Sequence[Mapping[str, Tensor]],
    bounds: Sequence[Sequence[int]],
    *,
    wire: Wire,
    transfer: Number | Callable[[Action], Number] = 0.0,
    num_repeats: int = 3,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Isolated:
    """Measure every rank of a schedule alone, and simulate them together.

    Args:
        schedule: of all ranks.
        make_stages: makes the stages of a rank; called for one rank at a time, after those of the
            rank before were given up.
        data, bounds: see ``Executor.step``.
        wire: see ``Executor``.
        transfer: seconds of a transfer, or a function of the receive, for the simulation.
        num_repeats: timed steps of every rank, after one that counts bytes.
        device: where the stages run.
        options: more of ``Executor``'s.
    """
    check_positive("num_repeats", num_repeats)
    of_ranks = []
    for rank in range(schedule.num_ranks):
        stages = make_stages(rank)
        of_ranks.append(
            isolate_rank(
                rank,
                schedule,
                stages,
                data,
                bounds,
                wire=wire,
                num_repeats=num_repeats,
                device=device,
                **options,
            )
        )
        del stages
        if torch.device(device).type != "cpu":
            gc.collect()  # what is held in cycles would take the next rank's room
    traces = tuple(merge(parts) for parts in zip(*of_ranks, strict=True))
    peaks = tuple(max((e.live_bytes for e in events), default=0) for events in traces[0].by_rank)
    return Isolated(traces, assemble(traces, transfer), peaks)


def isolate_rank(
    rank: int,
    schedule: Schedule,
    stages: Mapping[int, StageModule],
    data: Sequence[Mapping[str, Tensor]],
    bounds: Sequence[Sequence[int]],
    *,
    wire: Wire,
    num_repeats: int = 3,
    device: torch.device | str = "cpu",
    **options: Any,
) -> list[Trace]:
    """The exact program of one rank, with tensors of the right shapes where others would send.

    A first step counts the bytes held after every action; they are those of the timed steps, which
    follow. Every action is timed until the device has done it. Gradients are dropped.

    Returns:
        one trace a timed step, of this rank alone.
    """
    transport = IsolatedTransport(rank, schedule.num_ranks, torch.device(device))
    executor = Executor(
        rank,
        schedule,
        stages,
        transport,
        wire=wire,
        device=device,
        on_event=transport.on_event,
        **options,
    )
    traces = []
    held: list[int] = []
    for step in range(num_repeats + 1):
        transport.begin(counts_bytes=step == 0)
        executor.step(data, bounds)
        events = transport.finish()
        _drop_gradients(stages)
        if step == 0:
            held = [event.live_bytes for event in events]
            continue
        known = tuple(
            event._replace(live_bytes=num_bytes)
            for event, num_bytes in zip(events, held, strict=True)
        )
        origins = {rank: Origin(f"rank {rank} alone", 0)}
        meta = {"step": step - 1, "device": str(device), "isolated": True}
        cuts = tuple(map(tuple, bounds))
        traces.append(Trace(schedule, cuts, known, meta, (), origins))
    return traces


def assemble(
    traces: Sequence[Trace],
    transfer: Number | Callable[[Action], Number] = 0.0,
    *,
    clock: Clock = "wall",
) -> Timeline:
    """The step of ranks that were measured apart: every action takes its median over the traces.

    ``clock``: see ``durations_s``.
    """
    taken = [durations_s(trace, clock) for trace in traces]
    median = {action: statistics.median(t[action] for t in taken) for action in taken[0]}
    carry = transfer if callable(transfer) else lambda _: transfer
    program = compute_only(traces[0].schedule)
    return simulate(program, median.__getitem__, transfer=carry)


def _drop_gradients(stages: Mapping[int, StageModule]) -> None:
    for stage in stages.values():
        if isinstance(stage, torch.nn.Module):
            stage.zero_grad(set_to_none=True)
