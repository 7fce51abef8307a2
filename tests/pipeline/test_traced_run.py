"""Real steps, all ranks as threads of one process, traced: events, clocks, digests, losses."""

import dataclasses
import itertools

import pytest
import torch

from blocks.pipeline import Kind, Recorder, Schedule, Trace, compare, merge, replay
from blocks.pipeline.digests import Digests
from blocks.pipeline.in_process import in_process_transports, run_ranks
from blocks.pipeline.measured import RECEIVES
from blocks.pipeline.schedules import SCHEDULES
from tests.pipeline.running import make_executor
from tests.pipeline.slice_model import make_sequences, make_stages

BOUNDS = [(0, 5, 12), (0, 7, 12)]


def traced(schedule: Schedule, *, spoil: int | None = None) -> Trace:
    """A step of four layers in two stages; ``spoil`` changes a weight of that stage."""
    sequences = make_sequences(BOUNDS)
    stages = make_stages([2, 2], torch.float64)
    if spoil is not None:
        with torch.no_grad():
            next(stages[spoil].parameters()).view(-1)[0] += 1e-9

    def work(transport) -> Trace:
        digests = Digests()
        for stage, at in enumerate(schedule.placement):
            if at == transport.rank:
                digests.watch(stages[stage])
        recorder = Recorder(transport.rank, schedule, BOUNDS, {"step": 0}, digest=digests.take)
        executor = make_executor(schedule, stages, transport, torch.float64, on_event=recorder)
        losses = executor.step(sequences.data, sequences.bounds).losses
        told = [[losses[q, s].item() for s in range(2)] for q in range(2)] if losses else ()
        return recorder.trace(told)

    return merge(run_ranks(work, in_process_transports(schedule.num_ranks)))


def step(name: str, num_ranks: int = 2, **options) -> Trace:
    schedule = SCHEDULES[name](2, (2, 2), num_chunks=1)
    if num_ranks == 1:
        schedule = one_rank(schedule)
    return traced(schedule, **options)


def one_rank(schedule: Schedule) -> Schedule:
    """Both stages on one rank, all forwards first."""
    actions = [action for program in schedule.programs for action in program]
    forward = [a for a in actions if a.kind is Kind.FORWARD]
    backward = [a for a in actions if a.kind is not Kind.FORWARD]
    forward.sort(key=lambda a: (a.sequence, a.slice, a.stage))
    backward.sort(key=lambda a: (a.sequence, -a.slice, -a.stage))
    program = tuple(a._replace(chunk=a.stage) for a in (*forward, *backward))
    return dataclasses.replace(schedule, placement=(0, 0), programs=(program,))


def test_events_are_what_the_programs_say() -> None:
    trace = step("zb_h1")
    for rank, events in enumerate(trace.by_rank):
        done = tuple(e.action for e in events if e.action.kind.computes)
        assert done == trace.schedule.programs[rank]
        before = [
            second.action.kind
            for first, second in itertools.pairwise(events)
            if first.action.kind in RECEIVES
        ]
        assert set(before) <= {Kind.FORWARD, Kind.BACKWARD}, "a wait is right before its use"
        assert before
    found = replay(trace)
    assert found.measured.makespan > 0
    assert abs(found.replay_error) < 1, "threads share the interpreter, so no tighter"


@pytest.mark.parametrize("other", ["gpipe", "terapipe"])
def test_schedules_agree_action_by_action(other: str) -> None:
    found = compare(step("seq1f1b"), step(other))
    assert found.num_digests == 16
    assert found.first_digest is None
    assert found.num_losses == 4
    assert found.first_loss is None


def test_ranks_agree_with_one_rank() -> None:
    found = compare(step("seq1f1b"), step("seq1f1b", num_ranks=1))
    assert found.num_digests == 16
    assert found.first_digest is None
    assert found.makespan_ratio > 0


def test_the_action_where_runs_part_is_found() -> None:
    """A weight of stage 1 changes what stage 1 makes first, nothing that stage 0 makes before its
    backward."""
    found = compare(step("gpipe"), step("gpipe", spoil=1))
    assert repr(found.first_digest) == "F1(0,0)"
    assert found.first_loss is not None
    assert found.first_loss[:2] == (0, 0)
    found = compare(step("gpipe"), step("gpipe", spoil=0))
    assert found.first_digest is not None
    assert found.first_digest.stage == 0
    assert found.first_digest.kind is Kind.FORWARD


def test_digests_tell_bits_shapes_and_dtypes() -> None:
    digests = Digests()
    stage = torch.nn.Identity()
    digests.watch(stage)
    seen = []
    for tensor in (
        torch.zeros(4),
        torch.zeros(2, 2),
        -torch.zeros(4),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(8, dtype=torch.bfloat16),
        torch.zeros((), dtype=torch.int64),
    ):
        stage(tensor)
        seen.append(digests.take())
    assert len(set(seen)) == len(seen)
    stage(torch.zeros(4))
    assert digests.take() == seen[0]
