"""Rows rounded to eight bits as they come, each with its own scales."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import _quant_launch, reference
from blocks.ops.quant import QuantizedRows

HAS = ("reference", "triton")


@_checks.expects_tensors
def quantize_rows(
    x: Float[Tensor, "num_rows num_columns"],
    *,
    format: Literal["int8", "fp8"] = "int8",
    group_size: int | None = None,
    impl: Impl | None = None,
) -> QuantizedRows:
    """Round rows to eight bits, each with scales from its own largest magnitudes.

    Args:
        x: fp32, bf16 or fp16. A row with a NaN or an infinity has no meaning after this.
        format: ``int8`` or ``fp8`` (e4m3).
        group_size: columns that share a scale; None for whole rows.
        impl: None for the fastest where the tensor lives.

    Raises:
        ValueError: a format or a group size that does not exist.

    Reference: DeepSeek-AI 2024, DeepSeek-V3 technical report, 3.3.2 (groups of 128).
    """
    _checks.check(format in ("int8", "fp8"), "format", "'int8' or 'fp8'", repr(format))
    _checks.check_positive("group_size", group_size)
    if x.dim() != 2:
        _checks.check_shape("x", x, ("num_rows", "num_columns"))
    _checks.check_kind("x", x, "floating point")
    if choose_impl(impl, HAS, x) == "triton":
        return _quant_launch.quantize_rows(x, format, group_size or max(x.shape[1], 1))
    return reference.quantize_rows(x, format=format, group_size=group_size)


def quantize_rows_work(
    num_rows: int, num_columns: int, dtype_bytes: int, *, group_size: int | None = None
) -> Work:
    """Work of ``quantize_rows``: the rows are read, their numbers and scales are written."""
    elements = num_rows * num_columns
    groups = num_rows * -(-num_columns // (group_size or max(num_columns, 1)))
    return Work(3 * elements, elements * (dtype_bytes + 1) + 4 * groups)
