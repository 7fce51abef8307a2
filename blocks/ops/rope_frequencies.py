"""Frequencies of the rotary embedding, their scaling to longer contexts, the table of angles."""

import dataclasses
import math
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from blocks import _checks


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency is divided by ``factor``.

    Reference: Chen et al. 2023, "Extending context window of large language models via positional
    interpolation", section 2.3.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The rule of Llama 3.1: long wavelengths are divided by ``factor``, short ones kept.

    factor: how much longer the context becomes.
    low_freq_factor: wavelengths above ``original_max_positions / low_freq_factor`` are divided.
    high_freq_factor: wavelengths below ``original_max_positions / high_freq_factor`` are kept;
        between the two the rule blends smoothly.
    original_max_positions: context the model was first trained on [tokens].

    Reference: the Llama 3.1 reference code (llama-models, ``apply_scaling``).
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: dimensions that turn often are kept, slow ones divided, a ramp between them.

    factor: how much longer the context becomes.
    original_max_positions: context the model was first trained on [tokens].
    beta_fast, beta_slow: turns within that context at which the ramp starts and ends.
    attention_factor: multiplies cosines and sines; None derives ``0.1 ln(factor) + 1``, or the
        ratio of two such terms where ``mscale`` and ``mscale_all_dim`` are given (DeepSeek).
    truncate: round the ramp's ends to whole dimensions.

    Reference: Peng et al. 2023, "YaRN: efficient context window extension", sections 3.2 to 3.4.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
"""How frequencies are stretched; None stands for the plain embedding."""


class RopeFrequencies(NamedTuple):
    """What a rope table is made of.

    inverse: angle per position of each pair of dimensions, fp32 [rotary_dim / 2].
    attention_factor: multiplies cosines and sines (1 but for YaRN).
    """

    inverse: Tensor
    attention_factor: float


def rope_frequencies(
    rotary_dim: int, *, theta: float = 10000.0, scaling: RopeScaling | None = None
) -> RopeFrequencies:
    """The angle pair i of dimensions turns per position: ``theta ** (-2i / rotary_dim)``, scaled.

    Args:
        rotary_dim: leading dimensions of a head that turn; even, at most head_dim.
        theta: base of the geometric series; above 1.
        scaling: how the series is stretched to a longer context; None leaves it.

    Raises:
        ValueError: an odd or non-positive ``rotary_dim``, ``theta`` or a factor out of range.

    >>> rope_frequencies(4, theta=100.0).inverse
    tensor([1.0000, 0.1000])

    Reference: Su et al. 2021, "RoFormer", section 3.2.2, equation 15.
    """
    ok = rotary_dim > 0 and rotary_dim % 2 == 0
    _checks.check(ok, "rotary_dim", "a positive even number", rotary_dim)
    _checks.check(theta > 1, "theta", "a number above 1", theta)
    inverse = 1.0 / theta ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
    if scaling is None:
        return RopeFrequencies(inverse, 1.0)
    _checks.check_positive("scaling.factor", scaling.factor)
    if isinstance(scaling, LinearScaling):
        return RopeFrequencies(inverse / scaling.factor, 1.0)
    _checks.check_positive("scaling.original_max_positions", scaling.original_max_positions)
    if isinstance(scaling, Llama3Scaling):
        return RopeFrequencies(_llama3(inverse, scaling), 1.0)
    return RopeFrequencies(_yarn(rotary_dim, theta, scaling), _yarn_attention_factor(scaling))


def rope_table(
    frequencies: RopeFrequencies,
    max_positions: int,
    *,
    device: torch.device | str | None = None,
) -> Float32[Tensor, "max_positions rotary_dim"]:
    """Cosines (first half of a row) and sines (second half) of every position's angles.

    Args:
        frequencies: from ``rope_frequencies``.
        max_positions: rows of the table; positions at or beyond it cannot be used.
        device: where the table lives; default the CPU.

    >>> rope_table(rope_frequencies(2), 2)
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    _checks.check_positive("max_positions", max_positions)
    angles = torch.arange(max_positions).float()[:, None] * frequencies.inverse
    table = torch.cat((angles.cos(), angles.sin()), dim=-1) * frequencies.attention_factor
    return table.to(device)


def _llama3(inverse: Tensor, scaling: Llama3Scaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    _checks.check(0 < low < high, "scaling", "0 < low_freq_factor < high_freq_factor", (low, high))
    context = scaling.original_max_positions
    wavelength = 2 * math.pi / inverse
    stretched = torch.where(wavelength > context / low, inverse / scaling.factor, inverse)
    blend = (context / wavelength - low) / (high - low)
    blended = (1 - blend) * stretched / scaling.factor + blend * stretched
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(between, blended, stretched)


def _yarn(rotary_dim: int, theta: float, scaling: YarnScaling) -> Tensor:
    fast, slow = scaling.beta_fast, scaling.beta_slow
    _checks.check(fast >= slow > 0, "scaling", "beta_fast >= beta_slow > 0", (fast, slow))

    def dimension_turning(turns: float) -> float:
        ratio = scaling.original_max_positions / (turns * 2 * math.pi)
        return rotary_dim * math.log(ratio) / (2 * math.log(theta))

    low, high = dimension_turning(fast), dimension_turning(slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # a step, not a division by zero
    keep = 1 - ((torch.arange(rotary_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    period = theta ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
    return 1.0 / (scaling.factor * period) * (1 - keep) + 1.0 / period * keep


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    def growth(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return growth(scaling.mscale) / growth(scaling.mscale_all_dim)
    return growth(1.0)
