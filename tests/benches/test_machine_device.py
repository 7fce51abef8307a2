"""The accelerator's way of timing, run on a pretend accelerator that counts what is queued."""

import types

import pytest
import torch

from benches import machine


class Event:
    clock = 0.0

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = Event.clock

    def elapsed_time(self, other):
        return other.at - self.at


class Graph:
    def __init__(self):
        self.replays = 0

    def replay(self):
        Event.clock += 5.0  # milliseconds of kernels


class Capture:
    """``torch.cuda.graph``: what runs inside takes no time and may be refused."""

    def __init__(self, graph):
        pass

    def __enter__(self):
        Capture.inside = True

    def __exit__(self, *error):
        Capture.inside = False


Capture.inside = False


@pytest.fixture
def device(monkeypatch):
    queued = []
    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Capture,
        "Stream": lambda: types.SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda: types.SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda stream: __import__("contextlib").nullcontext(),
        "synchronize": lambda device=None: None,
        "_sleep": lambda cycles: queued.append("sleep"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    buffer = types.SimpleNamespace(add_=lambda value: queued.append("flush"))
    monkeypatch.setattr(machine, "_eviction_buffer", lambda device: buffer)
    return types.SimpleNamespace(type="cuda", queued=queued)


def call():
    Event.clock += 0.0 if Capture.inside else 9.0


def waits():
    if Capture.inside:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
    Event.clock += 7.0


def test_kernel_time_is_that_of_the_replay(device):
    found = machine.interleaved({"x": call}, device, max_rounds=5)["x"]
    assert found.best.median_s == pytest.approx(5e-3)
    assert found.note == ""
    assert found.best is found.kernel
    assert "sleep" not in device.queued
    assert device.queued.count("flush") >= 10, "before wall and kernel rounds alike"


def test_what_cannot_be_captured_is_queued_with_a_head_start(device):
    found = machine.interleaved({"x": waits, "y": call}, device, max_rounds=5)
    assert found["x"].best.median_s == pytest.approx(7e-3)
    assert found["x"].note.startswith("no graph: RuntimeError: operation not permitted")
    assert "more" not in found["x"].note
    assert found["y"].best.median_s == pytest.approx(5e-3)
    assert device.queued.count("sleep") == 5


def test_caches_may_stay_warm_and_graphs_be_left_out(device):
    found = machine.interleaved({"x": call}, device, max_rounds=5, cold=False, graph=False)["x"]
    assert found.kernel is None
    assert device.queued == []
