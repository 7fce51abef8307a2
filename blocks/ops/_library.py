"""The C++ functions of this block, one per element type, found by the dtype they compute on."""

from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import _native

SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
ARGUMENT_TYPES = {"p": c_void_p, "n": c_int64, "f": c_float, "i": c_int}


def native_takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the C++ functions can compute on these: CPU, and one dtype they know."""
    dtype = x.dtype
    return (
        dtype in SUFFIXES
        and x.device.type == "cpu"
        and all(t is None or t.dtype == dtype for t in others)
    )


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
