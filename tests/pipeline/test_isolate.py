"""Ranks measured alone: the right actions, the right shapes, what they hold, and their sum."""

import statistics
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from blocks.pipeline import Action, Kind, Schedule, TensorSpec, simulate
from blocks.pipeline.held_bytes import HeldBytes
from blocks.pipeline.isolate import Isolated, isolate_rank, isolate_ranks
from blocks.pipeline.isolated_transport import IsolatedTransport
from blocks.pipeline.measured import durations_s
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.view import figure
from tests.pipeline.slice_model import WIDTH, make_sequences, make_stages

LENGTH = 24


def measured(schedule: Schedule, num_repeats: int = 1) -> Isolated:
    cuts = [
        tuple(LENGTH * piece // count for piece in range(count + 1))
        for count in schedule.num_slices
    ]
    sequences = make_sequences(cuts)

    def make(rank: int) -> Mapping[int, nn.Module]:
        stages = make_stages([1] * schedule.num_stages, torch.float32)
        return {s: stages[s] for s, at in enumerate(schedule.placement) if at == rank}

    return isolate_ranks(
        schedule,
        make,
        sequences.data,
        sequences.bounds,
        wire=lambda source, target, num_tokens: [TensorSpec((num_tokens, WIDTH), torch.float32)],
        transfer=1e-3,
        num_repeats=num_repeats,
    )


@pytest.mark.parametrize("name", ["seq1f1b", "token_zero_bubble", "zb_v"])
def test_every_rank_does_its_program_alone(name: str) -> None:
    schedule = SCHEDULES[name](3, (2, 3, 2), num_chunks=2 if name == "zb_v" else 1)
    found = measured(schedule, num_repeats=2)
    for trace in found.traces:
        for rank, events in enumerate(trace.by_rank):
            done = tuple(e.action for e in events if e.action.kind.computes)
            assert done == schedule.programs[rank]
    assert [trace.meta["step"] for trace in found.traces] == [0, 1]
    assert len(found.traces[0].origins) == 3


def test_the_whole_is_simulated_from_medians() -> None:
    schedule = SCHEDULES["seq1f1b"](2, (3,), num_chunks=1)
    found = measured(schedule, num_repeats=3)
    taken = [durations_s(trace) for trace in found.traces]
    median = {action: statistics.median(t[action] for t in taken) for action in taken[0]}
    again = simulate(schedule, median.__getitem__, transfer=lambda _: 1e-3)
    assert found.timeline == again
    assert found.timeline.makespan > 1e-3 * 2


def test_a_rank_holds_more_the_more_forwards_wait() -> None:
    """The first rank of a 1F1B over four sequences holds three at once more than the last."""
    schedule = SCHEDULES["one_f_one_b"](4, (1,) * 8, num_chunks=1)
    found = measured(schedule)
    middle = found.peak_bytes[1] - found.peak_bytes[2]
    assert middle > 0, "rank 1 keeps one sequence more than rank 2, of the same layer"
    (trace,) = found.traces
    for rank in (1, 2):
        events = [e for e in trace.by_rank[rank] if e.action.kind.computes]
        grown = [e.live_bytes for e in events if e.action.kind is Kind.FORWARD]
        assert grown[1] - grown[0] == pytest.approx(middle, rel=0.35)
    shown = figure(found.timeline, planned_bytes=found.live_bytes, unit="s")
    for curve, peak in zip(shown.memory[0].planned, found.peak_bytes, strict=True):
        assert 0 < curve.peak <= peak, "a receive may hold a tensor more"
    everything = SCHEDULES["gpipe"](4, (1,) * 8, num_chunks=1)
    assert measured(everything).peak_bytes[2] > 2 * found.peak_bytes[2]


def test_gradients_are_dropped() -> None:
    schedule = SCHEDULES["seq1f1b"](2, (2,), num_chunks=1)
    sequences = make_sequences([(0, 8, 16)])
    stages = make_stages([1, 1], torch.float32)
    traces = isolate_rank(
        1,
        schedule,
        {1: stages[1]},
        sequences.data,
        sequences.bounds,
        wire=lambda source, target, num_tokens: [TensorSpec((num_tokens, WIDTH), torch.float32)],
        num_repeats=2,
    )
    assert all(parameter.grad is None for parameter in stages[1].parameters())
    first, second = ([e.action for e in trace.events] for trace in traces)
    assert first == second
    assert all(e.cpu_ns >= 0 and e.live_bytes >= 0 for trace in traces for e in trace.events)


def test_held_bytes_count_memory_once_and_while_it_lives() -> None:
    x = torch.ones(4, 4)
    with HeldBytes() as held:
        y = x * 2
        view = y[1:]
        y.add_(1)
        x.mul_(1)
        assert held.count() == 64
        del y
        assert held.count() == 64, "a view keeps its memory"
        del view
        assert held.count() == 0
        weight = torch.ones(4, 4, requires_grad=True)
        before = held.count()
        loss = (x @ weight).relu().sum()
        assert held.count() - before >= 64
        loss.backward()
        del loss
        assert weight.grad is not None
        assert held.count() == before + 64, "the gradient alone"


def test_what_others_would_send_has_numbers_of_its_own() -> None:
    transport = IsolatedTransport(0, 2, torch.device("cpu"))
    action = Action(Kind.SEND_BACKWARD, 1, 0, 0, 0, 0)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        spec = TensorSpec((64, 3), dtype)
        first, second = (transport.receive(spec, 1, action).wait(1.0) for _ in range(2))
        assert (first.shape, first.dtype) == spec
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr(), "whoever takes it may write to it"
        assert first.isfinite().all()
        assert not dtype.is_floating_point or 0.5 < first.float().std() < 2
