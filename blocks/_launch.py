"""Launching a Triton kernel from a cache: the same call with less said twice.

Triton finds the compiled kernel anew at every launch: it binds the arguments by name, describes
each, writes the options out as a string. Kernels here take tensors first, then numbers, then
compile-time constants, so the little that decides which compiled kernel fits can be read off
directly; the first launch of each kind goes through Triton, the next ones straight to what it
compiled. The arguments that reach the driver are the same.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_compiled: dict[tuple[Any, ...], Any] = {}
"""Compiled kernels by device, kernel, options, and what Triton specialises on."""
_runtime: Any = None
"""Triton's driver and knobs, once a kernel has been compiled."""
_SIZED = torch.version.hip is not None
"""Whether Triton compiles another kernel for tensors beyond 2 GiB, as it does on AMD chips."""
_SIZE = 2**31 - 1


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[Any],
    numbers: Sequence[int | float],
    constants: Mapping[str, Any],
    *,
    num_warps: int,
    num_stages: int,
) -> None:
    """Launch ``kernel`` on ``grid``, as ``kernel[grid](*tensors, *numbers, **constants)`` would.

    Args:
        kernel: a jit function whose parameters come in the order of the arguments here, or its
            interpreted twin.
        grid: one to three sizes.
        tensors: the pointer arguments; None for one that is absent. All on the first one's device,
            which need not be the current one.
        numbers: the run-time numbers. An int is told apart as Triton does: 1, a multiple of 16,
            more than 32 bits; a parameter that is not to be specialised on costs a spare entry.
        constants: the ``tl.constexpr`` arguments by name, in the kernel's order; hashable.
        num_warps, num_stages: as for Triton.

    Hooks on the launch, and the interpreter, take Triton's own path.
    """
    address = 0
    kinds: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            kinds.append(None)
        else:
            address |= tensor.data_ptr()
            kinds.append(tensor.dtype)
            if _SIZED:
                kinds.append(tensor.untyped_storage().size() <= _SIZE)
    if address % 16:
        kinds += [tensor is not None and tensor.data_ptr() % 16 == 0 for tensor in tensors]
    for n in numbers:
        if n.__class__ is float:
            kinds.append(float)
        elif n % 16 == 0:
            kinds.append(16 if n <= 2147483647 else 64)
        else:
            kinds.append(1 if n == 1 else 0 if n <= 2147483647 else 63)
    place = tensors[0].get_device()
    if _runtime is not None:
        driver, knobs = _runtime
        device = driver.active.get_current_device()
        key = (device, id(kernel), num_warps, num_stages, *constants.values(), *kinds)
        compiled = _compiled.get(key)
        here = place in (device, -1)
        if here and compiled is not None and not _watched(kernel, knobs):
            compiled.run(
                *(grid if len(grid) == 3 else (*grid, 1, 1)[:3]),
                driver.active.get_current_stream(device),
                compiled.function,
                compiled.packed_metadata,
                None,
                None,
                None,
                *tensors,
                *numbers,
                *constants.values(),
            )
            return
    if place >= 0 and place != torch.cuda.current_device():
        options = {"num_warps": num_warps, "num_stages": num_stages}
        with torch.cuda.device(place):
            launch(kernel, grid, tensors, numbers, constants, **options)
        return
    _launch_and_remember(kernel, grid, tensors, numbers, constants, num_warps, num_stages, kinds)


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is decided when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _watched(kernel: Any, knobs: Any) -> bool:
    """Whether somebody wants to see launches, or change compilation."""
    return bool(
        knobs.launch_enter_hook.calls
        or knobs.launch_exit_hook.calls
        or kernel.pre_run_hooks
        or getattr(knobs, "add_stages_inspection_hook", None)
    )


def _launch_and_remember(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[Any],
    numbers: Sequence[int | float],
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    kinds: list[Any],
) -> None:
    global _runtime
    options = {"num_warps": num_warps, "num_stages": num_stages}
    names = kernel.arg_names[len(tensors) + len(numbers) :]
    if tuple(names) != tuple(constants):
        raise TypeError(f"constants of {kernel}: expected {tuple(names)}, got {tuple(constants)}")
    compiled = kernel[grid](*tensors, *numbers, **constants, **options)
    if not all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata")):
        return  # the interpreter, or a version of triton that launches otherwise
    from triton import knobs
    from triton.runtime import driver

    _runtime = driver, knobs.runtime
    device = _runtime[0].active.get_current_device()
    _compiled[(device, id(kernel), num_warps, num_stages, *constants.values(), *kinds)] = compiled
