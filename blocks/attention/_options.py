"""The settings every attention call shares, checked once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from blocks._checks import fail


class Options(NamedTuple):
    """How scores become weights; see the README of this block for the formula.

    scale: multiplies query . key.
    window: most recent positions a query sees, itself included; None for all.
    softcap: scores become softcap * tanh(score / softcap); None for none.
    sinks: [num_heads] float32, a logit per head that takes weight but has no value; or None.
    alibi_slopes: [num_heads] float32, score -= slope * distance; or None.
    """

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None

    @property
    def per_head(self) -> tuple[Tensor | None, Tensor | None]:
        """Sinks and slopes."""
        return self.sinks, self.alibi_slopes


def resolve_options(
    query: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> Options:
    """Check the shared settings and fill in the default scale ``1 / sqrt(head_dim)``."""
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    if not 0 < scale < math.inf:
        raise fail("scale", "a positive finite number", scale)
    if window is not None and (window < 1 or window != int(window)):
        raise fail("window", "a positive number of tokens", window, "pass None for no window")
    if softcap is not None and not 0 < softcap < math.inf:
        raise fail("softcap", "a positive finite number", softcap, "pass None for no softcap")
    if sinks is not None:
        sinks = _per_head("sinks", sinks, query)
    if alibi_slopes is not None:
        alibi_slopes = _per_head("alibi_slopes", alibi_slopes, query)
    return Options(scale, window, softcap, sinks, alibi_slopes)


def _per_head(name: str, tensor: Tensor, query: Tensor) -> Tensor:
    """``tensor`` checked, and contiguous, as kernels index it."""
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} dtype: expected torch.float32, got {tensor.dtype}; use .float()")
    if tensor.shape != (query.shape[1],):
        raise fail(f"{name} shape", f"[{query.shape[1]}] (num_heads)", list(tensor.shape))
    if tensor.device != query.device:
        raise fail(f"{name} device", query.device, tensor.device, "move it with .to(device)")
    return tensor.contiguous()
