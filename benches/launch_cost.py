"""What a launch costs the host, measured without a device: ``python -m benches.launch_cost``.

The whole Python call is timed, from the public function to the point where the driver would be
called: checks, choice of tiles, allocation of the output, Triton's own dispatch (and ours where we
replace it). What is replaced: the driver, by one that loads nothing and whose launch returns at
once; the device of the tensors, which lie in host memory; and the two questions asked about the
device (its name, its number of processors), answered with an H200's. Kernels are compiled for real,
for sm_90.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


class NoDriver:
    """Stands where Triton expects its driver: knows the target, loads and launches nothing."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] | None = None
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, hash(kernel), 32, 0, 1024  # module, function, registers, spills, threads

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            if self.launched is not None:
                self.launched.append(arguments)

        return launch


def install() -> NoDriver:
    """Put the stand-ins in place, for the rest of this process."""
    import triton

    from blocks import _impl
    from blocks.attention import _tiles

    decode, extend = (
        importlib.import_module(f"blocks.attention.{name}") for name in ("decode", "extend")
    )

    driver: Any = NoDriver()
    triton.runtime.driver.set_active(driver)
    answers = {
        (_impl, "_require_triton"): None,
        (_tiles, "chip"): "sm_90",
        (_tiles, "num_processors"): 132,
        (decode, "may_look"): False,
        (extend, "may_look"): False,
    }
    for (module, name), answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    return driver


def calls() -> dict[str, Callable[[], object]]:
    """One eager call of each kind at Llama-3-8B's heads."""
    from blocks.attention import paged_decode, prefill

    dtype = torch.bfloat16
    one = torch.randn(16, 32, 128).to(dtype)
    query, keys, values = (torch.randn(64, heads, 128).to(dtype) for heads in (32, 8, 8))
    bounds = torch.tensor([0, 64], dtype=torch.int32)
    many = torch.tensor([0, 30, 64], dtype=torch.int32)
    key_cache, value_cache = torch.randn(2, 64, 16, 8, 128).to(dtype)
    table = torch.arange(64, dtype=torch.int32).view(16, 4)
    lens = torch.full((16,), 64, dtype=torch.int32)
    return {
        "paged_decode": lambda: paged_decode(
            one, key_cache, value_cache, table, lens, num_splits=1, impl="triton"
        ),
        "prefill, one sequence": lambda: prefill(query, keys, values, bounds, impl="triton"),
        "prefill, packed": lambda: prefill(query, keys, values, many, impl="triton"),
    }


def median_us(call: Callable[[], object], rounds: int = 3000) -> float:
    """Median time of one call [us]."""
    call()
    spent = []
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter_ns()
            call()
            spent.append(time.perf_counter_ns() - start)
    spent.sort()
    return spent[len(spent) // 2] / 1e3


def parts(call: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a whole call, of its launch, and of the same launch made by Triton alone."""
    from blocks import _launch
    from blocks.attention import _launch_attend, _launch_decode, _launch_tma

    launches: list[tuple[Any, ...]] = []

    def watch(kernel: Any, *arguments: Any, **options: Any) -> None:
        launches.append((kernel, arguments, options))
        _launch.launch(kernel, *arguments, **options)

    _launch_attend.launch = _launch_decode.launch = _launch_tma.launch = watch
    call()
    _launch_attend.launch = _launch_decode.launch = _launch_tma.launch = _launch.launch
    ((kernel, arguments, options),) = launches
    grid, tensors, numbers, constants = arguments

    def by_triton() -> None:
        kernel[grid](*tensors, *numbers, **constants, **options)

    found = {"call": call, "launch": lambda: _launch.launch(kernel, *arguments, **options)}
    found["triton"] = by_triton
    return {name: round(median_us(run), 2) for name, run in found.items()}


def measure() -> dict[str, dict[str, float]]:
    """``parts`` of every call, in a fresh process without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benches.launch_cost", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benches.launch_cost", description="Time launches without a device."
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON, in microseconds")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("kernels are compiled here: unset TRITON_INTERPRET")
    torch.set_num_threads(1)
    install()
    found = {name: parts(call) for name, call in calls().items()}
    if options.json:
        print(json.dumps(found))
        return
    print("host time [us], median:          whole call  launch  the same by Triton's own dispatch")
    for name, spent in found.items():
        print(f"{name:32} {spent['call']:10.1f} {spent['launch']:7.1f} {spent['triton']:7.1f}")


if __name__ == "__main__":
    main()
