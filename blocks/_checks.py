"""Argument checks that write the house error message: expected, got, what to do.

Tensors are looked at through ``shape``, ``dtype`` and ``device`` only, so this module imports no
torch and ``blocks.sched`` can use it.
"""

from typing import Any


def fail(what: str, expected: object, got: object, hint: str = "") -> ValueError:
    """The house ``ValueError``, ready to raise.

    >>> raise fail("window", "a positive number of tokens", -3, "pass None for no window")
    Traceback (most recent call last):
    ...
    ValueError: window: expected a positive number of tokens, got -3; pass None for no window
    """
    return ValueError(f"{what}: expected {expected}, got {got}" + (f"; {hint}" if hint else ""))


def check(ok: bool, what: str, expected: object, got: object, hint: str = "") -> None:
    """Raise the house ``ValueError`` unless ``ok``."""
    if not ok:
        raise fail(what, expected, got, hint)


def check_shape(name: str, tensor: Any, expected: tuple[object, ...], hint: str = "") -> None:
    """Check ``tensor.shape`` against ``expected``.

    An int in ``expected`` must match; a string names a free dimension and matches any size.
    """
    shape = tuple(tensor.shape)
    if shape == expected:
        return
    ok = len(shape) == len(expected) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(expected, shape, strict=True)
    )
    if not ok:
        wanted = "[" + ", ".join(str(want) for want in expected) + "]"
        raise fail(f"{name} shape", wanted, list(shape), hint)


def check_dtype(name: str, tensor: Any, allowed: tuple[Any, ...], hint: str = "") -> None:
    """Check that ``tensor.dtype`` is one of ``allowed``; raises ``TypeError`` otherwise."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        message = f"{name} dtype: expected {names}, got {tensor.dtype}"
        raise TypeError(message + (f"; {hint}" if hint else ""))


def check_same_device(**tensors: Any) -> None:
    """Check that all given tensors (None is skipped) live on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise fail("devices", "all tensors on one device", listed, "move them with .to(device)")


def check_positive(name: str, value: int | float | None, hint: str = "") -> None:
    """Check that a number, when given, is greater than zero (NaN is refused)."""
    if value is not None and not value > 0:
        raise fail(name, "a positive number", value, hint)
