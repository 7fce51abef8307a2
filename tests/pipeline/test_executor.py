"""The executor: what it refuses, holds and lets go of, and its ways beside the training step."""

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks.pipeline import (
    SCHEDULES,
    Action,
    Executor,
    InProcessTransport,
    Kind,
    PipelineStuck,
    Schedule,
    SliceContext,
    TensorSpec,
    TraceEvent,
    in_process_transports,
    run_ranks,
)
from blocks.pipeline.schedules import interleaved, seq1f1b, token_zero_bubble
from tests.pipeline.running import make_executor, run_step
from tests.pipeline.slice_model import (
    assert_same_bits,
    make_sequences,
    make_stages,
    plain_step,
    take_gradients,
)

F32 = torch.float32


class Box:
    """Stands for a tensor where somebody holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Linear(nn.Module):
    """A linear layer and a sum; can tell what of its graphs and states is still held."""

    def __init__(self, last: bool = True, width: int = 4) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(4, width), last
        self.seen: list[weakref.ref] = []
        self.counts: list[int] = []

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        x = inputs[0] if inputs else context.data["x"][context.start : context.stop]
        context.state["kept"] = self.box(x)
        with torch.autograd.graph.saved_tensors_hooks(self.box, lambda box: box.tensor):
            y = torch.tanh(self.linear(x))
        self.counts.append(self.num_held())
        return y.sum() if self.last else y

    def box(self, tensor: Tensor) -> Box:
        box = Box(tensor)
        self.seen.append(weakref.ref(box))
        return box

    def num_held(self) -> int:
        return sum(ref() is not None for ref in self.seen)


def wire(source: int, target: int, num_tokens: int) -> list[TensorSpec]:
    return [TensorSpec((num_tokens, 4), F32)]


def data(*lengths: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.ones(length, 4)} for length in lengths]


def one(
    schedule: Schedule | None = None, stage: nn.Module | None = None, **options: Any
) -> Executor:
    (transport,) = in_process_transports(1)
    made, stages = schedule or seq1f1b(1, (2,)), {0: stage or Linear()}
    return Executor(0, made, stages, transport, wire=wire, **options)


@pytest.mark.parametrize("name", ["gpipe", "interleaved", "token_zero_bubble"])
@pytest.mark.parametrize("tied", [False, True])
def test_forward_only_gives_the_losses(name: str, tied: bool) -> None:
    """Of other sequences than the schedule trains on, also between steps."""
    stages = make_stages([1, 1], F32, tied=tied)
    seen, looked = make_sequences([(0, 2, 5), (0, 3)]), make_sequences([(0, 4), (0, 1, 2, 6)] * 2)
    schedule = SCHEDULES[name](2, seen.num_slices)
    expected = plain_step(stages, looked)
    take_gradients(stages)
    plain_step(stages, seen)
    gradients = take_gradients(stages)

    def work(transport: InProcessTransport) -> list[dict]:
        executor = make_executor(schedule, stages, transport, F32)
        first = executor.forward_only(looked.data, looked.bounds)
        executor.step(seen.data, seen.bounds)
        return [first.losses, executor.forward_only(looked.data, looked.bounds).losses]

    for losses in run_ranks(work, in_process_transports(2, max_delay_s=1e-3))[1]:
        assert losses.keys() == expected.keys()
        assert all(torch.equal(losses[key], expected[key]) for key in expected)
    assert_same_bits(take_gradients(stages), gradients)


@pytest.mark.parametrize("name", ["seq1f1b", "token_zero_bubble", "interleaved"])
@pytest.mark.parametrize("recompute", [(), (0, 1)])
def test_nothing_of_a_step_is_held(name: str, recompute: tuple[int, ...]) -> None:
    schedule = SCHEDULES[name](2, (2, 3))
    stages = [Linear(last=False), Linear()]

    def work(transport: InProcessTransport) -> Executor:
        mine = {transport.rank: stages[transport.rank]}
        options = {"wire": wire, "recompute": recompute}
        executor = Executor(transport.rank, schedule, mine, transport, **options)
        executor.step(data(4, 6), [(0, 3, 4), (0, 1, 2, 6)])
        return executor

    executors = run_ranks(work, in_process_transports(2))
    gc.collect()
    assert len(executors) == 2
    assert [stage.num_held() for stage in stages] == [0, 0]
    assert all(max(stage.counts) > 2 for stage in stages)


def alone() -> tuple[Schedule, Linear]:
    """Four slices of a sequence forward and backward, then a sequence of one."""
    order = [(Kind.FORWARD, 0, piece) for piece in range(4)]
    order += [(Kind.FULL_BACKWARD, 0, piece) for piece in (3, 2, 1, 0)]
    order += [(Kind.FORWARD, 1, 0), (Kind.FULL_BACKWARD, 1, 0)]
    program = tuple(Action(kind, 0, 0, sequence, piece) for kind, sequence, piece in order)
    return Schedule("alone", (0,), (4, 1), (program,)), Linear()


def test_a_slice_is_let_go_of_after_its_backward() -> None:
    """A graph holds an input and an output, a sequence one state."""
    schedule, stage = alone()
    one(schedule, stage).step(data(4, 2), [(0, 1, 2, 3, 4), (0, 2)])
    assert stage.counts == [2 + 1, 4 + 1, 6 + 1, 8 + 1, 2 + 1]


def test_with_recomputation_one_graph_is_held_at_a_time() -> None:
    schedule, stage = alone()
    one(schedule, stage, recompute=[0]).step(data(4, 2), [(0, 1, 2, 3, 4), (0, 2)])
    assert stage.counts == [1, 1, 1, 1, 3, 3, 3, 3, 1, 3]


def test_events_cover_every_action_once() -> None:
    sequences = make_sequences([(0, 2, 5), (0, 3)])
    stages = make_stages([1, 1], F32)
    events: list[TraceEvent] = []
    schedule = token_zero_bubble(2, sequences.num_slices)
    run_step(schedule, stages, sequences, dtype=F32, on_event=events.append)
    lowered = schedule.__dict__["_proven"]
    for rank, program in enumerate(lowered.programs):
        mine = [event for event in events if event.rank == rank]
        assert sorted(event.action for event in mine) == sorted(program)
        assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(mine))
        computed = [event.action for event in mine if event.action.kind.computes]
        assert computed == list(schedule.programs[rank])


def test_a_failing_stage_ends_all_ranks() -> None:
    stages = make_stages([1, 1], F32)
    sequences = make_sequences([(0, 2, 5)])
    del sequences.data[0]["labels"]  # type: ignore[attr-defined]
    ended: list[BaseException] = []

    def work(transport: InProcessTransport) -> None:
        executor = make_executor(seq1f1b(2, (2,)), stages, transport, F32)
        try:
            executor.step(sequences.data, sequences.bounds)
        except BaseException as error:
            ended.append(error)
            raise

    with pytest.raises(KeyError, match="labels"):
        run_ranks(work, in_process_transports(2))
    (stuck,) = (error for error in ended if isinstance(error, PipelineStuck))
    assert "rank 0 waits for RB0>1(0,1) from rank 1" in str(stuck)
    assert "rank 1 failed: KeyError('labels')" in str(stuck)


def test_a_stage_may_not_put_out_what_the_wire_does_not_say() -> None:
    stages = [Linear(last=False, width=3), Linear()]

    def work(transport: InProcessTransport) -> None:
        mine = {transport.rank: stages[transport.rank]}
        executor = Executor(transport.rank, seq1f1b(2, (1,)), mine, transport, wire=wire)
        executor.step(data(2), [(0, 2)])

    with pytest.raises(ValueError, match=r"tensors of SF0>1\(0,0\): expected .*\(2, 4\).*\(2, 3\)"):
        run_ranks(work, in_process_transports(2))


def test_the_last_stage_must_end_in_a_scalar() -> None:
    executor = one(stage=Linear(last=False))
    with pytest.raises(ValueError, match=r"outputs of F0\(0,0\): expected one scalar"):
        executor.step(data(4), [(0, 2, 4)])


@pytest.mark.parametrize(
    ("batch", "bounds", "options", "said"),
    [
        (data(4), [(0, 4)], {}, "bounds: expected slices"),
        (data(4, 4), [(0, 2, 4)], {}, "data: expected of 1 sequences, got 2"),
        (data(4), [(0, 4, 4)], {}, "bounds: expected whole tokens ascending from 0"),
        (data(4), [(1, 2, 4)], {}, "bounds: expected whole tokens ascending from 0"),
        (data(4), [(0, 2, 4)], {"lanes": [0, 1]}, "lanes: expected one a sequence, 1, got 2"),
        (data(4), [(0, 2, 4)], {"sequence_ids": []}, "sequence_ids: expected one a sequence"),
    ],
)
def test_data_that_does_not_fit_is_refused(batch, bounds, options, said: str) -> None:
    executor = one()
    with pytest.raises(ValueError, match=said):
        executor.step(batch, bounds, **options)
    assert executor.step(data(4), [(0, 2, 4)]).loss().dim() == 0, "nothing was begun"


BACK_TO_FRONT = (Action(Kind.FULL_BACKWARD, 0, 0, 0, 0), Action(Kind.FORWARD, 0, 0, 0, 0))
WRONG = Schedule("wrong", (0,), (1,), (BACK_TO_FRONT,))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": interleaved(1, (1,), num_chunks=2)}, r"stages of rank 0: expected \[0, 1\]"),
        ({"schedule": seq1f1b(2, (1,))}, "ranks of transport: expected 2, got 1"),
        ({"schedule": WRONG}, r"rank 0, index 0, BW0\(0,0\): expected F0\(0,0\) before it"),
        ({"recompute": [1]}, "recompute: expected stages below 1, got 1"),
        ({"receive_ahead": 0}, "receive_ahead: expected at least 1, got 0"),
        ({"ties": [{0: "linear.weight"}]}, "tie: expected two stages or more"),
        ({"ties": [{0: "x", 1: "y"}]}, "tie: expected two stages or more below 1"),
        ({"report_after_s": 0.0}, "report_after_s: expected a positive number, got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one(**options)


def test_a_weight_is_tied_once() -> None:
    transport = in_process_transports(2)[1]
    ties = [{0: "linear.weight", 1: "linear.weight"}, {0: "linear.bias", 1: "linear.weight"}]
    with pytest.raises(ValueError, match="ties of stage 1: expected a weight in one tie"):
        Executor(1, seq1f1b(2, (1,)), {1: Linear()}, transport, wire=wire, ties=ties)


def test_a_tied_weight_must_exist() -> None:
    transport = in_process_transports(2)[1]
    tie = {0: "linear.weight", 1: "head.weight"}
    with pytest.raises(ValueError, match=r"tied weight of stage 1: expected one of .*head.weight"):
        Executor(1, seq1f1b(2, (1,)), {1: Linear()}, transport, wire=wire, ties=[tie])
