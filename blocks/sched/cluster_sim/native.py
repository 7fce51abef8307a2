"""The event loop in C++, compiled on first use: the answers of ``reference.py``, bit for bit."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blocks import _native
from blocks.sched.cluster_sim.problem import Answers, Problem

SOURCE = Path(__file__).parent / "_native" / "cluster.cpp"
COUNTS = ("num_requests", "num_groups", "num_replicas", "num_events", "noise_columns")
DOUBLES = ("arrival_s", "deadline_s", "noise", "gap_s", "stage_s", "event_s", "event_seconds")
INTS = ("model", "num_stages", "replica_group", "model_first", "size_first", "sizes")
INTS += ("stage_first", "event_kind", "event_group", "event_replica", "up", "loaded")
SWITCHES = ("dispatch", "batching", "admit", "retry")
OUTPUTS = ("answered_s", "busy_s", "group", "status")


class _Arrays(ctypes.Structure):
    """``Arrays`` of cluster.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in (*DOUBLES, *INTS)),
        *((name, ctypes.c_int32) for name in SWITCHES),
        ("request_s", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in OUTPUTS),
    ]


def is_available() -> bool:
    """Whether there is a compiler to build it with."""
    return _native.compiler() is not None


def run_native(problem: Problem) -> Answers:
    """What becomes of every request.

    Raises:
        RuntimeError: no compiler.
    """
    answers = Answers.pending(len(problem.arrival_s), len(problem.num_stages))
    arrays = _Arrays()
    arrays.num_requests = len(problem.arrival_s)
    arrays.num_groups = len(problem.num_stages)
    arrays.num_replicas = len(problem.replica_group)
    arrays.num_events = len(problem.event_s)
    arrays.noise_columns = problem.noise.shape[1]
    kept = []  # what is pointed to must live until the call is over
    for names, dtype in ((DOUBLES, np.float64), (INTS, np.int32)):
        for name in names:
            array = np.ascontiguousarray(getattr(problem, name), dtype)
            kept.append(array)
            setattr(arrays, name, array.ctypes.data if array.size else None)
    for name in SWITCHES:
        setattr(arrays, name, int(getattr(problem, name)))
    arrays.request_s = problem.request_s
    for name in OUTPUTS:
        setattr(arrays, name, getattr(answers, name).ctypes.data)
    _function()(ctypes.byref(arrays))
    return answers


@functools.cache
def _function() -> Callable[..., Any]:
    function = _native.load_plain(SOURCE).run_cluster
    function.argtypes = [ctypes.c_void_p]
    function.restype = None
    return function
