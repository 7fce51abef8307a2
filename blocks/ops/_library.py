"""The C++ functions of this block, one per element type, found by the dtype they compute on."""

import functools
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import _native
from blocks._checks import fail
from blocks._impl import choose_impl, native_ready

SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
ARGUMENT_TYPES = {"p": c_void_p, "n": c_int64, "f": c_float, "i": c_int}


def native_takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the C++ functions can compute on these: all on the CPU, in one dtype they know."""
    dtype = x.dtype
    if dtype not in SUFFIXES or not x.is_cpu:
        return False
    for other in others:  # a loop, because a generator costs as much as the rest
        if other is not None and (other.dtype != dtype or not other.is_cpu):
            return False
    return True


def choose(
    impl: str | None,
    has: tuple[str, ...],
    x: Tensor,
    *others: Tensor | None,
    traced: bool,
    differentiable: tuple[str, ...] = ("reference", "torch"),
    native: bool = True,
) -> str:
    """``choose_impl`` with ``native`` among the implementations where the tensors allow it.

    The usual call, no wish and tensors the C++ functions take, is decided first: it is made
    several times a layer, and each microsecond counts when there is one row. Under torch.compile
    on a CPU the reference is the choice: its parts are fused with their neighbours there. So it is
    inside ``torch.func`` transforms, which can follow it to any order.
    ``native`` says whether the operation has C++ functions at all.
    """
    if native and native_takes(x, *others):
        if impl is not None:
            has = (*has, "native")
        elif (not traced or "native" in differentiable) and _is_plain(traced) and native_ready():
            return "native"
    if traced and torch.compiler.is_compiling():
        if impl in has and impl in differentiable:
            return impl  # whether it can run here is found out when it does
    elif impl is None and not _is_plain(traced):
        return "reference"
    for other in others:
        if other is not None and other.device != x.device:
            where = f"all tensors on {x.device}"
            raise fail("devices", where, other.device, "move them with .to(device)")
    return choose_impl(impl, has, x, grad=traced, differentiable=differentiable)


def _is_plain(traced: bool) -> bool:
    """Whether neither torch.compile nor a ``torch.func`` transform is looking on."""
    if not traced:
        return True
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def contiguous_rows(x: Tensor) -> Tensor:
    """``x`` itself if each of its rows is contiguous, else a copy."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


@functools.cache
def num_processors(device: torch.device) -> int:
    """Processors that run Triton programs side by side; a few on a CPU, for the interpreter."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


def functions(
    source: str, name: str, arguments: str, returns: type | None = None
) -> dict[torch.dtype, Callable[..., Any]]:
    """``name_<suffix>`` of ``_native/<source>.cpp`` for every dtype, argument types set.

    ``arguments`` has one letter an argument: p pointer, n int64, f float, i int. Keep the result:
    looking it up again would cost more than the small calls it is made for.
    """
    library = _native.load(Path(__file__).parent / "_native" / f"{source}.cpp")
    found = {}
    for dtype, suffix in SUFFIXES.items():
        function = getattr(library, f"{name}_{suffix}")
        function.argtypes = [ARGUMENT_TYPES[letter] for letter in arguments]
        function.restype = returns
        found[dtype] = function
    return found
