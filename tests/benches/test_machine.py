"""How calls are timed: interleaved rounds, medians with their spread, rates of declared work."""

import time

import pytest
import torch

from benches import machine
from blocks._work import Work

CPU = torch.device("cpu")


def test_spread_of_a_timing():
    found = machine.Timing.of([float(n) for n in range(11)])
    assert (found.median_s, found.p10_s, found.p90_s, found.rounds) == (5.0, 1.0, 9.0, 11)
    assert machine.Timing.of([7.0]) == machine.Timing(7.0, 7.0, 7.0, 1)


def test_calls_are_timed_in_turn():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    found = machine.interleaved(calls, CPU, max_rounds=6, cold=False)
    assert set(found) == {"a", "b"}
    assert found["a"].wall.rounds == 6
    assert found["a"].kernel is None
    timed = seen[-12:]
    assert timed == ["a", "b"] * 6, "no call runs twice in a row while it is timed"


def test_a_slow_call_is_seen_as_slow_and_the_budget_holds():
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    start = time.perf_counter()
    found = machine.interleaved(calls, CPU, budget_s=0.2, cold=False)
    assert time.perf_counter() - start < 2
    assert found["slow"].best.median_s >= 0.02 > 10 * found["fast"].best.median_s
    assert 5 <= found["slow"].wall.rounds <= 10
    medians = machine.race(calls, CPU, rounds=3, cold=False)
    assert medians["slow"] > medians["fast"]


def test_launch_seconds_is_per_call():
    assert 0.001 <= machine.launch_seconds(lambda: time.sleep(0.001), CPU, calls=5, rounds=3) < 0.01


def test_rates_follow_from_work(monkeypatch):
    monkeypatch.setattr(machine, "peak_bandwidth", lambda device: 100e9)
    monkeypatch.setattr(machine, "peak_flops", lambda device, dtype: 1e12)
    found = machine.rates(Work(flops=10**9, bytes=10**9), 0.02, CPU, torch.float32)
    assert found["gb_per_s"] == 50
    assert found["tflop_per_s"] == 0.05
    assert found["share_of_bandwidth"] == 0.5
    assert found["share_of_flops"] == 0.05
    assert found["share_of_roofline"] == 0.5


def test_the_environment_names_what_a_number_depends_on():
    found = machine.environment()
    assert set(found) == {"device", "driver", "python", "torch", "triton", "commit", "date"}
    assert all(found.values())


@pytest.mark.gpu
def test_a_call_that_cannot_be_captured_is_timed_on_the_device_all_the_same():
    device = torch.device("cuda")
    x = torch.randn(1 << 26, device=device, requires_grad=True)
    y = (x * x).sum()
    backward = lambda: torch.autograd.grad(y, x, retain_graph=True)  # noqa: E731
    found = machine.interleaved({"backward": backward}, device)["backward"]
    assert found.kernel is not None
    assert found.kernel.median_s < found.wall.median_s


@pytest.mark.gpu
def test_kernel_time_is_below_wall_time_and_near_the_peak():
    device = torch.device("cuda")
    x = torch.randn(1 << 28, device=device)
    y = torch.empty_like(x)
    found = machine.interleaved({"copy": lambda: y.copy_(x)}, device)["copy"]
    assert found.kernel is not None, found.note
    assert found.kernel.median_s < found.wall.median_s
    share = 2 * 4 * x.numel() / found.kernel.median_s / machine.peak_bandwidth(device)
    assert 0.85 < share < 1.1
