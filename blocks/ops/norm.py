"""RMSNorm and LayerNorm over the last dimension, with the residual addition fused in."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace
from blocks.ops._library import choose, functions

HAS = ("reference", "triton")
MAX_TILE = 32768
"""Widest row one Triton program holds [columns]."""


class Normed(NamedTuple):
    """A norm with a fused addition.

    output: the normalised sum, like x.
    residual: the sum itself, rounded to x's dtype, to be carried on as the residual stream.
    """

    output: Tensor
    residual: Tensor


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = ...,
    residual: None = None,
    weight_offset: float = ...,
    impl: Impl | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = ...,
    residual: Tensor,
    weight_offset: float = ...,
    impl: Impl | None = None,
) -> Normed: ...
@_checks.expects_tensors
def rms_norm(
    x: Float[Tensor, "*rows hidden_size"],
    weight: Float[Tensor, " hidden_size"],
    *,
    eps: float = 1e-6,
    residual: Float[Tensor, "*rows hidden_size"] | None = None,
    weight_offset: float = 0.0,
    impl: Impl | None = None,
) -> Tensor | Normed:
    """Divide each row by its root mean square and multiply by the weight.

    ``x / sqrt(mean(x**2) + eps) * (weight_offset + weight)``, in fp32. Two rounding orders are in
    use and ``weight_offset`` tells them apart: with 0 the scaled row is rounded to x's dtype before
    it is multiplied (Llama, Qwen, Mistral); with another offset everything is multiplied in fp32
    and rounded once (Gemma, offset 1). Both equal transformers' modules.

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: one factor per column.
        eps: added to the mean square; at least 0.
        residual: added to x first, in x's dtype; the norm is that of the rounded sum.
        weight_offset: added to the weight.
        impl: None for the fastest where the tensors live.

    Returns:
        The normed rows in x's dtype, or with ``residual`` a ``Normed`` (output, residual).

    Raises:
        ValueError, TypeError: shapes that disagree, a dtype that is not floating, a negative eps.

    >>> import torch
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0)
    tensor([[0.8485, 1.1314]])

    Reference: Zhang and Sennrich 2019, "Root mean square layer normalization", equation 4.
    """
    _check(x, weight, None, residual, eps)
    chosen = choose(impl, HAS, x, weight, residual, traced=must_trace(x, weight, residual))
    if chosen == "native":
        normed = _native_rms_norm(x, weight, eps, residual, weight_offset)
    elif chosen == "triton":
        normed = _triton_norm(x, weight, None, eps, residual, weight_offset, is_layer=False)
    else:
        normed = reference.rms_norm(
            x, weight, eps=eps, residual=residual, weight_offset=weight_offset
        )
    return normed[0] if residual is None else Normed(*normed)


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = ...,
    residual: None = None,
    impl: Impl | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = ...,
    residual: Tensor,
    impl: Impl | None = None,
) -> Normed: ...
@_checks.expects_tensors
def layer_norm(
    x: Float[Tensor, "*rows hidden_size"],
    weight: Float[Tensor, " hidden_size"],
    bias: Float[Tensor, " hidden_size"] | None = None,
    *,
    eps: float = 1e-5,
    residual: Float[Tensor, "*rows hidden_size"] | None = None,
    impl: Impl | None = None,
) -> Tensor | Normed:
    """Standardise each row, multiply by the weight and add the bias.

    ``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` in fp32, rounded once; the variance is
    the mean squared deviation (two passes, no cancellation).

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: one factor per column.
        bias: one addend per column, or None.
        eps: added to the variance; at least 0.
        residual: added to x first, in x's dtype; the norm is that of the rounded sum.
        impl: None for the fastest where the tensors live.

    Returns:
        The normed rows in x's dtype, or with ``residual`` a ``Normed`` (output, residual).

    Raises:
        ValueError, TypeError: shapes that disagree, a dtype that is not floating, a negative eps.

    >>> import torch
    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), eps=0.0)
    tensor([[-1.,  1.]])

    Reference: Ba, Kiros and Hinton 2016, "Layer normalization", equations 3 and 4.
    """
    _check(x, weight, bias, residual, eps)
    traced = must_trace(x, weight, bias, residual)
    chosen = choose(impl, HAS, x, weight, bias, residual, traced=traced)
    if chosen == "native":
        normed = _native_layer_norm(x, weight, bias, eps, residual)
    elif chosen == "triton":
        normed = _triton_norm(x, weight, bias, eps, residual, 0.0, is_layer=True)
    else:
        normed = reference.layer_norm(x, weight, bias, eps=eps, residual=residual)
    return normed[0] if residual is None else Normed(*normed)


def norm_work(num_rows: int, hidden_size: int, dtype_bytes: int, *, residual: bool = False) -> Work:
    """Work of ``rms_norm`` or ``layer_norm``: four operations an element, each row in and out."""
    elements = num_rows * hidden_size
    passes = 4 if residual else 2
    return Work(4 * elements, (passes * elements + hidden_size) * dtype_bytes)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} dtype: expected a floating point dtype, got {tensor.dtype}")
    _checks.check(x.dim() >= 1, "x shape", "at least one dimension", x.shape)
    hidden_size = x.shape[-1]
    _checks.check_shape("weight", weight, (hidden_size,), "one factor per column of x")
    if bias is not None:
        _checks.check_shape("bias", bias, (hidden_size,), "one addend per column of x")
    if residual is not None:
        _checks.check_shape("residual", residual, tuple(x.shape), "it is added to x")
        _checks.check_dtype("residual", residual, (x.dtype,), "the sum keeps x's dtype")
    _checks.check(eps >= 0, "eps", "a number of at least 0", eps)


def _native_rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, weight_offset: float
) -> tuple[Tensor, Tensor]:
    x, weight, residual = x.contiguous(), weight.contiguous(), _contiguous(residual)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    hidden_size = x.shape[-1]
    _rms_functions()[x.dtype](
        x.data_ptr(),
        _pointer(residual),
        weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        x.numel() // hidden_size if hidden_size else 0,
        hidden_size,
        eps,
        weight_offset,
    )
    return y, total


def _native_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, weight, residual = x.contiguous(), weight.contiguous(), _contiguous(residual)
    bias = _contiguous(bias)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    hidden_size = x.shape[-1]
    _layer_functions()[x.dtype](
        x.data_ptr(),
        _pointer(residual),
        weight.data_ptr(),
        _pointer(bias),
        y.data_ptr(),
        total.data_ptr(),
        x.numel() // hidden_size if hidden_size else 0,
        hidden_size,
        eps,
    )
    return y, total


def _triton_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    weight_offset: float,
    *,
    is_layer: bool,
) -> tuple[Tensor, Tensor]:
    from blocks.ops._triton.norm import _norm_kernel

    hidden_size = x.shape[-1]
    ok = hidden_size <= MAX_TILE
    _checks.check(ok, "hidden size", f"at most {MAX_TILE} with impl='triton'", hidden_size)
    x, residual = x.contiguous(), _contiguous(residual)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if x.numel() == 0:
        return y, total
    num_rows = x.numel() // hidden_size
    tile_rows, tile_hidden, num_warps = norm_tiles(hidden_size)
    launch: Any = _norm_kernel[(-(-num_rows // tile_rows),)]
    launch(
        x,
        residual,
        weight.contiguous(),
        _contiguous(bias),
        y,
        None if residual is None else total,
        num_rows,
        hidden_size,
        eps,
        weight_offset,
        IS_LAYER=is_layer,
        ROUND_FIRST=not is_layer and weight_offset == 0.0,
        TILE_ROWS=tile_rows,
        TILE_HIDDEN=tile_hidden,
        num_warps=num_warps,
    )
    return y, total


def norm_tiles(hidden_size: int) -> tuple[int, int, int]:
    """Rows and columns of a Triton program's tile, and its warps.

    Whole rows, several where they are short. Up to 8K columns a thread holds 16; wider rows give it
    64, because with 32 the compiler for sm_90 aims at 64 registers and spills.
    """
    tile_hidden = 1 << max(hidden_size - 1, 0).bit_length()
    tile_rows = max(1, min(16, 1024 // tile_hidden))
    num_warps = max(2, tile_hidden // (512 if tile_hidden <= 8192 else 2048))
    return tile_rows, tile_hidden, num_warps


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _rms_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm", "rms_norm", "pppppnnff")


@functools.cache
def _layer_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm", "layer_norm", "ppppppnnf")
