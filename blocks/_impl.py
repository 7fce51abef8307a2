"""Choice of implementation: the name of an operation is its meaning, ``impl`` is only how.

``reference`` is the eager specification, ``torch`` a faster arrangement of torch calls, ``native``
C++ for the CPU, ``triton`` the Triton kernels. Every operation passes the ones it has and, where
gradients may flow, the ones that carry them. An explicit choice runs or raises; nothing falls back
in silence.
"""

import functools
import importlib.util
import os
import warnings
from typing import Any, Literal

from blocks import _native

Impl = Literal["reference", "torch", "native", "triton"]


def choose_impl(
    impl: str | None,
    has: tuple[str, ...],
    *tensors: Any,
    grad: bool = False,
    differentiable: tuple[str, ...] = ("reference", "torch"),
) -> str:
    """Resolve ``impl`` for an operation that has the implementations ``has``.

    Args:
        impl: the caller's wish, or None for the best one for where the tensors live.
        has: implementations of this operation.
        tensors: the operation's tensors; the first decides the device.
        grad: whether gradients must flow.
        differentiable: implementations of this operation through which gradients flow.

    Raises:
        ValueError: unknown or unavailable implementation, with what would make it available.
    """
    device = tensors[0].device.type
    if impl is None:
        if grad:
            has = tuple(name for name in has if name in differentiable)
        return _default(has, device)
    if impl not in has:
        raise ValueError(f"impl: expected one of {list(has)} or None, got {impl!r}")
    if impl == "triton":
        _require_triton(device)
    if impl == "native":
        _require_native(device)
    if grad and impl not in differentiable:
        raise ValueError(
            f"impl: expected a differentiable implementation, got {impl!r} with inputs that "
            "require grad; pass impl='reference' or call under torch.no_grad()"
        )
    return impl


def _default(has: tuple[str, ...], device: str) -> str:
    if device != "cpu" and "triton" in has:
        return "triton"
    if device == "cpu" and "native" in has and native_ready():
        return "native"
    return "torch" if "torch" in has else "reference"


@functools.cache
def native_ready() -> bool:
    """Whether there is a compiler, so that C++ functions can be had; warns once where not."""
    if _native.compiler() is not None:
        return True
    warnings.warn(
        "no C++ compiler found (looked for $CXX, c++, g++, clang++): CPU kernels use the slower "
        "torch implementations; install g++ to get the native ones",
        RuntimeWarning,
        stacklevel=4,
    )
    return False


def _require_native(device: str) -> None:
    if device != "cpu":
        raise ValueError(f"impl='native': expected CPU tensors, got {device}; use impl='triton'")
    if _native.compiler() is None:
        raise ValueError("impl='native': expected a C++ compiler, got none; install g++ or set CXX")


def _require_triton(device: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("impl='triton': expected triton to be installed; pip install triton")
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "impl='triton': expected accelerator tensors, got CPU tensors; set TRITON_INTERPRET=1 "
            "before the first import to run the kernel in Triton's interpreter"
        )
