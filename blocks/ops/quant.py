"""Weights and rows held in eight or four bits: the data, how it is made, and what it stands for."""

import dataclasses
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from blocks import _checks

Format = Literal["int8", "fp8", "int4"]
GroupSize = Literal["tensor", "channel"] | int | tuple[int, int]

STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}
"""dtype of the stored values; int4 is two to a byte."""
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
"""What the largest magnitude of a group becomes."""
PACK = 64
"""int4: a run of 64 columns is 32 bytes; byte b holds column b low and column b + 32 high."""
ZERO = 8
"""int4 without zero points: the stored number that stands for 0."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix in few bits: ``weight[r, c] = (stored[r, c] - zero) * scale``, a scale a group.

    Element (r, c) belongs to group (r // group[0], c // group[1]). Every field that holds data is
    a plain tensor, so a checkpoint keeps them under three names.

    Attributes:
        values: int8 or float8_e4m3fn [out_features, in_features]; int4 as uint8
            [out_features, 32 * ceil(in_features / 64)], packed as ``PACK`` says.
        scales: fp32 [row groups, column groups].
        zeros: uint8 like ``scales``, int4 with zero points only; None stands for 8 in int4 and for
            0 in the other formats.
        shape: (out_features, in_features).
        group: rows and columns that share a scale.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, int]
    group: tuple[int, int]

    def __post_init__(self) -> None:
        _checks.check_dtype("values", self.values, tuple(STORED.values()))
        rows, columns = self.shape
        stored = -(-columns // PACK) * PACK // 2 if self.format == "int4" else columns
        _checks.check_shape("values", self.values, (rows, stored))
        _check_group(self.group)
        groups = tuple(-(-n // g) for n, g in zip(self.shape, self.group, strict=True))
        _checks.check_shape("scales", self.scales, groups)
        _checks.check_dtype("scales", self.scales, (torch.float32,))
        if self.zeros is not None:
            _checks.check(self.format == "int4", "zeros", f"None for {self.format}", "a tensor")
            _checks.check_shape("zeros", self.zeros, groups)
            _checks.check_dtype("zeros", self.zeros, (torch.uint8,))
        _checks.check_same_device(values=self.values, scales=self.scales, zeros=self.zeros)

    @property
    def format(self) -> Format:
        """``int8``, ``fp8`` or ``int4``, told by the dtype of ``values``."""
        dtype = self.values.dtype
        return "int8" if dtype == torch.int8 else "int4" if dtype == torch.uint8 else "fp8"

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors: what one pass over the weight reads."""
        tensors = (self.values, self.scales, self.zeros)
        return sum(t.numel() * t.itemsize for t in tensors if t is not None)

    def to(self, device: torch.device | str) -> "QuantizedWeight":
        """The same weight on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        moved = {"values": self.values.to(device), "scales": self.scales.to(device), "zeros": zeros}
        return dataclasses.replace(self, **moved)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that stands behind the numbers: computed in fp32, rounded to ``dtype``."""
        stored = unpack_int4(self.values, self.shape[1]) if self.format == "int4" else self.values
        numbers = stored.float()
        if self.format == "int4":
            numbers -= (
                ZERO
                if self.zeros is None
                else spread_groups(self.zeros.float(), self.group, self.shape)
            )
        return (numbers * spread_groups(self.scales, self.group, self.shape)).to(dtype)


class QuantizedRows(NamedTuple):
    """Rows in eight bits: ``x[r, c] = values[r, c] * scales[r, c // group_size]``.

    values: int8 or float8_e4m3fn [num_rows, num_columns].
    scales: fp32 [num_rows, groups of a row].
    group_size: columns that share a scale.
    """

    values: Tensor
    scales: Tensor
    group_size: int

    def dequantize(self) -> Tensor:
        """The fp32 rows that stand behind the numbers."""
        return self.values.float() * spread_groups(
            self.scales, (1, self.group_size), self.values.shape
        )


@_checks.expects_tensors
def quantize_weight(
    weight: Float[Tensor, "out_features in_features"],
    *,
    format: Format = "int8",
    group_size: GroupSize | None = None,
    symmetric: bool = True,
) -> QuantizedWeight:
    """Round a weight to int8, fp8 (e4m3) or int4 with one scale a group of elements.

    The scale of a group makes its largest magnitude the largest number of the format (127, 448 or
    7), so nothing is clipped: an integer format is off by at most half a scale, fp8 by at most a
    sixteenth of the value (below ``scale / 64``, by ``scale / 1024``).

    Args:
        weight: fp32, bf16, fp16 or fp64, finite.
        format: ``int8``, ``fp8`` or ``int4``.
        group_size: who shares a scale. ``tensor``: all; ``channel``: a row; a number: so many
            columns of a row; two numbers: a block of rows and columns. None takes ``channel``, and
            128 columns for int4. Columns come in multiples of 64.
        symmetric: False fits int4 between the smallest and the largest of the group (and 0), with
            a zero point: finer where a group leans to one side.

    Raises:
        ValueError, TypeError: a format or group that does not exist, a weight that is not finite.

    >>> import torch
    >>> quantize_weight(torch.tensor([[1.27, -0.5, 0.004]])).values
    tensor([[127, -50,   0]], dtype=torch.int8)

    Reference: Dettmers et al. 2022, LLM.int8; Micikevicius et al. 2022, FP8 formats for deep
    learning; Frantar et al. 2023, GPTQ (grouped int4); DeepSeek-AI 2024, DeepSeek-V3, 3.3.
    """
    _checks.check(format in STORED, "format", f"one of {sorted(STORED)}", repr(format))
    if weight.dim() != 2:
        _checks.check_shape("weight", weight, ("out_features", "in_features"))
    _checks.check_kind("weight", weight, "floating point")
    hint = "int8 and fp8 have a sign; only int4 takes zero points"
    _checks.check(symmetric or format == "int4", "symmetric", f"True for {format}", False, hint)
    group = _group(group_size, format, weight)
    wide = weight.detach().float()
    finite = bool(wide.isfinite().all())
    _checks.check(finite, "weight", "finite numbers", "infinity or NaN")
    if symmetric:
        low, extent = None, extent_of_groups(wide.abs(), group, "max") / LARGEST[format]
    else:
        low = extent_of_groups(wide, group, "min").clamp_max(0)
        extent = (extent_of_groups(wide, group, "max").clamp_min(0) - low) / 15
    scales = extent.clamp_min(SMALLEST_SCALE)
    zeros = None if low is None else (-low / scales).round().to(torch.uint8)
    scaled = wide / spread_groups(scales, group, wide.shape)
    if format == "fp8":
        values = scaled.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    elif format == "int8":
        values = scaled.round().clamp(-127, 127).to(torch.int8)
    else:
        zero = ZERO if zeros is None else spread_groups(zeros.float(), group, wide.shape)
        values = pack_int4((scaled.round() + zero).clamp(0, 15).to(torch.uint8))
    return QuantizedWeight(values, scales, zeros, (weight.shape[0], weight.shape[1]), group)


def pack_int4(numbers: Tensor) -> Tensor:
    """uint8 numbers 0 to 15, [rows, columns], two to a byte as ``PACK`` says; padded with 8."""
    padding = -numbers.shape[1] % PACK
    padded = F.pad(numbers, (0, padding), value=ZERO)
    halves = "row (run half byte) -> half row (run byte)"
    low, high = rearrange(padded, halves, half=2, byte=PACK // 2)
    return low | high << 4


def unpack_int4(packed: Tensor, num_columns: int) -> Tensor:
    """The numbers 0 to 15 that ``pack_int4`` was given."""
    whole = "half row (run byte) -> row (run half byte)"
    numbers = rearrange([packed & 15, packed >> 4], whole, byte=PACK // 2)
    return numbers[:, :num_columns]


def _group(group_size: Any, format: str, weight: Tensor) -> tuple[int, int]:
    rows, columns = (max(n, 1) for n in weight.shape)
    whole = -(-columns // PACK) * PACK
    if group_size is None:
        group_size = 128 if format == "int4" else "channel"
    if isinstance(group_size, str):
        names = "'tensor', 'channel', a number or two"
        _checks.check(group_size in ("tensor", "channel"), "group_size", names, repr(group_size))
        return (rows if group_size == "tensor" else 1, whole)
    group = (1, group_size) if isinstance(group_size, int) else group_size
    _check_group(group)
    return group


def _check_group(group: Any) -> None:
    ok = len(group) == 2 and group[0] > 0 and group[1] > 0 and group[1] % PACK == 0
    _checks.check(ok, "group_size", f"positive rows, columns in multiples of {PACK}", group)


def extent_of_groups(x: Tensor, group: tuple[int, int], how: Literal["max", "min"]) -> Tensor:
    """Largest or smallest element of each group; elements that pad the last group are 0."""
    rows, columns = group
    x = F.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))
    groups = "(row rows) (column columns) -> row column"
    return reduce(x, groups, how, rows=rows, columns=columns)


def spread_groups(per_group: Tensor, group: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """A number a group as a number an element."""
    rows, columns = group
    spread = "row column -> (row rows) (column columns)"
    return repeat(per_group, spread, rows=rows, columns=columns)[: shape[0], : shape[1]]
