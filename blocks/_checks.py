"""Argument checks that write the house error message: expected, got, what to do.

Tensors are looked at through ``shape``, ``dtype`` and ``device`` only, so this module imports no
torch and ``blocks.sched`` can use it.
"""

import contextlib
import ctypes
import dataclasses
import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, ParamSpec, SupportsIndex, TypeVar, Union, get_args, get_origin

P = ParamSpec("P")
T = TypeVar("T")


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


def check_kind(name: str, tensor: Any, kind: str) -> None:
    """Check that ``tensor`` is of ``kind``: ``floating point`` or ``whole number``."""
    floating = tensor.is_floating_point()
    integer = not (floating or tensor.is_complex() or str(tensor.dtype) == "torch.bool")
    if not (floating if kind == "floating point" else integer):
        raise TypeError(f"{name} dtype: expected a {kind} dtype, got {tensor.dtype}")


def check_same_device(**tensors: Any) -> None:
    """Check that all given tensors (None is skipped) live on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise fail("devices", "all tensors on one device", listed, "move them with .to(device)")


def check_positive(name: str, value: int | float | None, hint: str = "") -> None:
    """Check that a number, when given, is greater than zero (NaN is refused)."""
    if value is not None and not (is_number(value) and value > 0):
        got = value if is_number(value) else repr(value)
        raise fail(name, "a positive number", got, hint)


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, not a truth value.

    >>> is_number(2), is_number(0.5), is_number("2"), is_number(True)
    (True, True, False, False)
    """
    if type(value) is int or type(value) is float:  # nearly always, and quick
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_count(name: str, value: object, hint: str = "", *, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``; truth values are none.

    >>> check_count("num_ranks", 2.5)
    Traceback (most recent call last):
    ...
    ValueError: num_ranks: expected a positive whole number, got 2.5
    >>> check_count("num_blocks", "4", least=2)
    Traceback (most recent call last):
    ...
    ValueError: num_blocks: expected a whole number of at least 2, got '4'
    """
    if type(value) is int and value >= least:  # nearly always; the rest takes microseconds
        return
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with contextlib.suppress(TypeError):  # an array of several
            if value.__index__() >= least:
                return
    wanted = "a positive whole number" if least == 1 else f"a whole number of at least {least}"
    raise fail(name, wanted, repr(value), hint)


@contextlib.contextmanager
def reading(what: str, data: object, keys: type | Iterable[str]) -> Iterator[None]:
    """Around the reading of plain data: other keys are refused, and values of other kinds too.

    Args:
        keys: those of the data, or the dataclass that has them as fields.

    >>> with reading("point", {"x": 1, "heigth": 2}, ["x", "height"]):
    ...     pass
    Traceback (most recent call last):
    ...
    ValueError: point: expected the keys ['height'] too, got ['heigth']; did you mean height?
    >>> with reading("point", {"x": None}, ["x"]):
    ...     float(None)
    Traceback (most recent call last):
    ...
    ValueError: point: expected values of the right kinds, got float() argument must be ...
    """
    names = [f.name for f in dataclasses.fields(keys)] if isinstance(keys, type) else keys
    wanted = set(names)
    if not isinstance(data, Mapping):
        raise fail(what, f"the keys {sorted(wanted)}", type(data).__name__)
    if set(data) != wanted:
        raise _other_keys(what, wanted, set(data))
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise fail(what, "values of the right kinds", error) from error


def _other_keys(what: str, wanted: set[str], given: set[Any]) -> ValueError:
    """Which are missing and which nobody asked for, not those that are as they should be."""
    missing, unknown = sorted(wanted - given), sorted(map(str, given - wanted))
    if not missing:
        return fail(what, "no further keys", unknown)
    meant = [near for key in unknown for near in difflib.get_close_matches(key, missing, 1)]
    hint = f"did you mean {', '.join(dict.fromkeys(meant))}?" if meant else ""
    got = unknown or ("the others alone" if given else "none")
    return fail(
        what, f"the keys {missing} too" if given & wanted else f"the keys {missing}", got, hint
    )


def expects_tensors(operation: Callable[P, T]) -> Callable[P, T]:
    """Decorator: an argument that is no tensor, or no number, where one belongs is refused with the
    house ``TypeError``.

    Nothing is looked at before the call: only when it breaks on a missing attribute are its
    arguments compared with the annotations.

    >>> from blocks.ops import relu
    >>> relu([1.0])
    Traceback (most recent call last):
    ...
    TypeError: x: expected a tensor, got list
    """

    @functools.wraps(operation)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return operation(*args, **kwargs)
        except AttributeError as error:
            _refuse_non_tensors(operation, args, kwargs, error)
            raise
        except (TypeError, ctypes.ArgumentError) as error:
            if ": expected " not in str(error):  # not in the house's words yet
                _refuse_non_numbers(operation, args, kwargs, error)
            raise

    return checked


def _refuse_non_tensors(
    operation: Callable[..., Any], args: Any, kwargs: Any, cause: AttributeError
) -> None:
    import torch

    signature = inspect.signature(operation)
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        annotation = signature.parameters[name].annotation
        text = annotation if isinstance(annotation, str) else str(annotation)
        optional = "None" in text
        if "Tensor" not in text or isinstance(value, torch.Tensor) or (optional and value is None):
            continue
        if any(word in text for word in ("list", "Sequence", "float", "int |")):
            continue  # takes other things beside a tensor
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}") from cause


def _refuse_non_numbers(
    operation: Callable[..., Any], args: Any, kwargs: Any, cause: Exception
) -> None:
    signature = inspect.signature(operation)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # Python's own words: an argument is missing, or there is none of that name
    for name, value in given.items():
        kinds = number_kinds(signature.parameters[name].annotation)
        if not kinds or (value is None and type(None) in kinds):
            continue
        whole = float not in kinds
        if not hasattr(value, "__index__" if whole else "__float__"):
            wanted = "a whole number" if whole else "a number"
            raise TypeError(f"{name}: expected {wanted}, got {value!r}") from cause


def number_kinds(annotation: Any) -> set[Any]:
    """The types an annotation allows where all are numbers or None, else none.

    >>> number_kinds(int | None) == {int, type(None)}, number_kinds(tuple[int, int]) == set()
    (True, True)
    """
    union = isinstance(annotation, UnionType) or get_origin(annotation) is Union
    kinds = set(get_args(annotation) if union else (annotation,))
    return kinds if kinds <= {int, float, type(None)} else set()
