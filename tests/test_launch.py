"""Launches from the cache: the same arguments as Triton's own, and when they are not taken."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from blocks import _launch

APART = """
import json, sys
import torch
from benches import launch_cost
from blocks import _launch
from tests import test_launch as t

driver = launch_cost.install()
print(json.dumps({name: getattr(t, name)(driver) for name in sys.argv[1:]}))
"""


@triton.jit
def _scaled_kernel(x_ptr, y_ptr, absent_ptr, n, stride, factor, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + at * stride, mask=at < n, other=0.0)
    tl.store(y_ptr + at, x * factor, mask=at < n)


def call(n=100, stride=1, factor=2.0, tile=16, shift=0, dtype=torch.float32, warps=4):
    x, y = torch.ones(16 * 1024, dtype=dtype), torch.zeros(16 * 1024, dtype=dtype)
    grid = (-(-n // tile),)
    tensors, numbers = (x[shift:], y[shift:], None), (n, stride, factor)
    _launch.launch(
        _scaled_kernel, grid, tensors, numbers, {"TILE": tile}, num_warps=warps, num_stages=2
    )
    return y[shift:]


VARIANTS = [
    {},
    {"n": 7},
    {"n": 1},
    {"n": 160},
    {"stride": 2},
    {"stride": 16},
    {"n": 1, "stride": 16},
    {"n": 2**31 + 5},
    {"n": 2**31},
    {"factor": 16.0},
    {"factor": 3},
    {"tile": 32},
    {"shift": 1},
    {"shift": 4},
    {"dtype": torch.float16},
    {"warps": 2},
]


def describe(arguments) -> list[str]:
    """What reached the driver; tensors by address offset and dtype, which differ between calls."""
    return [
        f"{a.dtype} {a.data_ptr() % 16}" if isinstance(a, torch.Tensor) else repr(a)
        for a in arguments
    ]


def same_kernel_and_arguments(driver) -> list[str]:
    """Differences between what Triton and a cache that knows all variants hand to the driver."""
    found, theirs = [], []
    for variant in VARIANTS:
        _launch._compiled.clear()
        driver.launched = []
        call(**variant)  # Triton's own path
        theirs += driver.launched
        if len(_launch._compiled) != 1:
            found.append(f"{variant}: {len(_launch._compiled)} kept")
    for variant in VARIANTS:
        call(**variant)
    for variant, expected in zip(VARIANTS, theirs, strict=True):
        driver.launched = []
        call(**variant)
        (ours,) = driver.launched
        # grid, stream, function, options; launch metadata and two hooks; arguments
        if describe(expected[:6] + expected[9:]) != describe(ours[:6] + ours[9:]):
            found.append(f"{variant}: {describe(expected)} != {describe(ours)}")
    if len({launched[4] for launched in theirs}) < 8:
        found.append("the variants hardly differ")
    return found


def hooks_are_called(driver) -> list[str]:
    """A launch hook is handed to the driver, though the kernel is in the cache."""
    from triton import knobs

    call()
    hook: Any = print
    knobs.runtime.launch_enter_hook.add(hook)
    driver.launched = []
    call()
    knobs.runtime.launch_enter_hook.remove(hook)
    (launched,) = driver.launched
    return [] if launched[7] is knobs.runtime.launch_enter_hook else ["no hook handed over"]


def large_tensors_are_told_apart(driver) -> list[str]:
    """On AMD chips, where Triton addresses tensors within 2 GiB by 32 bits."""
    kept = []
    for _launch._SIZED in (False, True):
        _launch._compiled.clear()
        for size in (16, 2**29 + 16):
            x = torch.empty(size)
            options = {"num_warps": 4, "num_stages": 2}
            _launch.launch(
                _scaled_kernel, (1,), (x, x, None), (16, 1, 2.0), {"TILE": 16}, **options
            )
        kept.append(len(_launch._compiled))
    return [] if kept == [1, 2] else [f"{kept} kept"]


NAMES = ["same_kernel_and_arguments", "hooks_are_called", "large_tensors_are_told_apart"]


@pytest.fixture(scope="module")
def found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", APART, *NAMES], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_against_tritons_own_launch(found, name):
    assert found[name] == []


def test_the_interpreter_runs_the_kernel():
    y = call(n=20)
    assert (y[:20] == 2).all()
    assert (y[20:] == 0).all()


def test_constants_out_of_order_are_refused():
    x = torch.ones(16)
    with pytest.raises(TypeError, match=r"constants of .*TILE"):
        _launch.launch(
            _scaled_kernel, (1,), (x, x), (3, 1, 2.0), {"TILE": 16}, num_warps=4, num_stages=2
        )
