"""Calling operations of the contract table on a device, and what is asked of each call there."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tests.contract_table import TABLE, operation, tensors
from tests.numerics import assert_close


def moved(value: Any, device: torch.device) -> Any:
    """A copy of inputs with every tensor on ``device``, however they are wrapped."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: moved(v, device) for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(v, device) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{n: moved(getattr(value, n), device) for n in names})
    return value


def run(name: str, given: dict[str, Any], device: torch.device, **options: Any) -> list[Tensor]:
    """Results and what was written in place, from copies of the inputs on ``device``."""
    copies = moved(given, device)
    found = tensors(operation(name)(**copies, **options))
    return [*found, *(t for written in TABLE[name].written for t in tensors(copies[written]))]


def assert_same(
    found: list[Tensor], expected: list[Tensor], name: str, slack: float | None = None
) -> None:
    """Floats within their tolerance, everything else equal."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if ours.is_floating_point() and ours.dtype.itemsize > 1:
            limit = TABLE[name].slack if slack is None else slack
            assert_close(ours, theirs.to(ours.device), what=name, slack=limit)
        else:
            theirs = theirs.to(ours.device)
            assert ours.shape == theirs.shape
            same = (ours.float() == theirs.float()).float().mean() if ours.numel() else 1.0
            assert same > 0.995, f"{name}: {same:.4f} of the elements are equal"
