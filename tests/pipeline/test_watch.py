"""Waiting: what is reported, when it ends, and what channels of threads promise."""

import threading
import time

import pytest
import torch
from torch import Tensor

from blocks.pipeline import (
    Action,
    PipelineStuck,
    TensorSpec,
    in_process_transports,
    run_ranks,
)
from blocks.pipeline.watch import Watch

SEND = Action.parse("SF0>1(3,5)", chunk=0)
SPEC = TensorSpec((2,), torch.float32)


class Clock:
    """Seconds that pass only while somebody waits."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Silent:
    """A handle nothing comes of until ``comes_at``."""

    def __init__(self, clock: Clock, comes_at: float = 1e9, error: Exception | None = None) -> None:
        self.clock, self.comes_at, self.error = clock, comes_at, error

    def done(self) -> bool:
        return self.clock.now >= self.comes_at

    def wait(self, timeout_s: float) -> Tensor:
        if self.error is not None:
            raise self.error
        self.clock.now = min(self.clock.now + timeout_s, max(self.comes_at, self.clock.now))
        if not self.done():
            raise TimeoutError
        return torch.ones(2)


def watch(clock: Clock, reports: list[str], abort_after_s: float = 100.0):
    transports = in_process_transports(2)
    transports[1].post_status("BW1(2,0)")
    made = Watch(
        transports[0],
        report_after_s=5.0,
        abort_after_s=abort_after_s,
        on_report=lambda text: reports.append(f"{clock.now:g}: {text}"),
        clock=clock,
    )
    return made, transports


def test_what_comes_in_time_is_not_reported() -> None:
    clock, reports = Clock(), []
    made, _ = watch(clock, reports)
    assert made.wait(Silent(clock, 4.9), "RF1>0(3,5) from", 1).sum() == 2
    assert reports == []


def test_both_actions_are_named_again_and_again() -> None:
    clock, reports = Clock(), []
    made, _ = watch(clock, reports)
    made.wait(Silent(clock, 17.0), "RF1>0(3,5) from", 1)
    named = "rank 0 waits for RF1>0(3,5) from rank 1, which is at BW1(2,0) since 0.0 s"
    assert reports == [f"{seconds}: {named}" for seconds in (5, 10, 15)]


def test_it_ends_and_tells_the_others() -> None:
    clock, reports = Clock(), []
    made, (_, other) = watch(clock, reports, abort_after_s=7.0)
    with pytest.raises(PipelineStuck, match=r"rank 1, which is at BW1\(2,0\).*waited 7.0 s"):
        made.wait(Silent(clock), "RF1>0(3,5) from", 1)
    assert other.given_up() is not None
    assert len(reports) == 1


@pytest.mark.parametrize("error", [None, ConnectionError("gone")])
def test_a_rank_that_gave_up_ends_waiting(error: Exception | None) -> None:
    clock, reports = Clock(), []
    made, (_, other) = watch(clock, reports)
    other.give_up("rank 1 failed: KeyError('x')")
    with pytest.raises(PipelineStuck, match=r"rank 0 waits for .*; rank 1 failed: KeyError"):
        made.wait(Silent(clock, error=error), "RF1>0(3,5) from", 1)
    assert clock.now <= 1.0
    assert reports == []


def test_a_broken_channel_ends_waiting() -> None:
    clock = Clock()
    made, _ = watch(clock, [])
    with pytest.raises(PipelineStuck, match="the channel broke: gone"):
        made.wait(Silent(clock, error=ConnectionError("gone")), "RF1>0(3,5) from", 1)


def test_a_send_is_done_when_it_is_asked_for() -> None:
    first, second = in_process_transports(2)
    sent = first.send(torch.ones(2), 1, SEND)
    assert not sent.done()
    with pytest.raises(TimeoutError):
        sent.wait(timeout_s=0.01)
    received = second.receive(SPEC, 0, SEND)
    assert sent.done()
    assert torch.equal(received.wait(timeout_s=1.0), torch.ones(2))


def test_a_late_tensor_is_waited_for() -> None:
    first, second = in_process_transports(2)
    received = second.receive(SPEC, 0, SEND)
    assert not received.done()
    threading.Timer(0.05, lambda: first.send(torch.ones(2), 1, SEND)).start()
    assert torch.equal(received.wait(timeout_s=10.0), torch.ones(2))


def test_delays_keep_the_order_of_a_channel() -> None:
    first, second = in_process_transports(2, max_delay_s=0.02, seed=3)
    actions = [SEND._replace(slice=piece) for piece in range(5)]
    handles = [second.receive(SPEC, 0, action) for action in actions]
    for piece, action in enumerate(actions):
        first.send(torch.full((2,), float(piece)), 1, action)
    until = time.monotonic() + 10.0
    while not handles[-1].done() and time.monotonic() < until:
        time.sleep(1e-3)
    found = [handle.wait(timeout_s=0.0)[0].item() for handle in handles]
    assert found == [0, 1, 2, 3, 4]


def test_what_arrives_must_be_what_was_expected() -> None:
    first, second = in_process_transports(2)
    first.send(torch.ones(2), 1, SEND)
    with pytest.raises(ValueError, match="what arrived: expected SF0>1\\(3,6\\), got SF0>1"):
        second.receive(SPEC, 0, SEND._replace(slice=6)).wait(timeout_s=1.0)
    first.send(torch.ones(3), 1, SEND)
    with pytest.raises(ValueError, match="tensor of SF0>1"):
        second.receive(SPEC, 0, SEND).wait(timeout_s=1.0)


def test_the_first_error_of_all_ranks_is_raised() -> None:
    def work(transport) -> None:
        if transport.rank == 1:
            raise KeyError("x")
        made = Watch(transport, report_after_s=5.0, abort_after_s=60.0)
        made.wait(transport.receive(SPEC, 1, SEND), "RF1>0(3,5) from", 1)

    with pytest.raises(KeyError):
        run_ranks(work, in_process_transports(2))
