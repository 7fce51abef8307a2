"""Draw one token per row of logits: greedy, or by temperature, top-k, top-p and min-p.

The draw is a race: each kept token runs for an exponential time with its probability as the rate,
and the first to arrive is drawn. The times come from a counter, not from a generator's state.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._library import functions, native_takes

HAS = ("reference", "triton")
HAS_NATIVE = ("reference", "native", "triton")
TILE = 2048
"""Most logits a Triton program looks at in one go."""
PerRow = Tensor | Sequence[float] | Sequence[int] | float | int
"""One number for all rows, or one per row as a list or a tensor [num_rows]."""


def sample(
    logits: Float[Tensor, "num_rows vocab_size"],
    *,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
    seeds: PerRow = 0,
    positions: PerRow = 0,
    impl: Impl | None = None,
) -> Int[Tensor, " num_rows"]:
    """Draw a token id for every row.

    Rules apply in the order temperature, top-k, top-p over what top-k left, min-p. A rule that
    keeps a token keeps all tokens of the same logit, so the kept set does not depend on token
    order. A row of temperature 0 takes its largest logit, the lowest id among equals, and costs
    only that search. NaN counts as minus infinity.

    The noise of a token is a pure function of the row's seed, its position and the token id: a
    row's draw is the same alone, in any batch, in any row order and on any device (up to the last
    bit of fp32 in the probabilities).

    Args:
        logits: fp32, bf16 or fp16; read only.
        temperature: divides the logits; finite, at least 0; 0 is greedy.
        top_k: keep the k largest logits; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach p; in (0, 1].
        min_p: keep tokens at least this probable relative to the likeliest; in [0, 1].
        seeds: one 64-bit integer per row, the request's.
        positions: one integer per row, the place of the drawn token in its sequence.
        impl: None for the fastest where the logits live.

        Parameters given as accelerator tensors are not looked at (it would synchronise); all
        others are checked.

    Returns:
        int64 token ids; -1 for a row with no token to draw (every logit NaN or minus infinity).

    Raises:
        ValueError, TypeError: a parameter out of range, of a wrong length or not a number.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    >>> sample(logits, temperature=0.0)
    tensor([1, 0])
    >>> sample(logits, temperature=[1.0, 1.0], top_p=0.9, seeds=[7, 8], positions=[3, 0])
    tensor([2, 0])

    Reference: Gumbel 1954 / Maddison et al. 2014 (the race); Fan et al. 2018 (top-k), Holtzman et
    al. 2020, "The curious case of neural text degeneration", section 3.1 (top-p), Nguyen et al.
    2024, "Min-p sampling".
    """
    _checks.check_shape("logits", logits, ("num_rows", "vocab_size"))
    if not logits.is_floating_point():
        raise TypeError(f"logits dtype: expected a floating point dtype, got {logits.dtype}")
    num_rows, vocab_size = logits.shape
    _checks.check(vocab_size > 0, "logits shape", "at least one column", list(logits.shape))
    parameters = (
        per_row("temperature", temperature, num_rows, torch.float32, 0.0, math.inf),
        per_row("top_k", top_k, num_rows, torch.int64, 0, None),
        per_row("top_p", top_p, num_rows, torch.float32, 0.0, 1.0, open_low=True),
        per_row("min_p", min_p, num_rows, torch.float32, 0.0, 1.0),
        per_row("seeds", seeds, num_rows, torch.int64, None, None),
        per_row("positions", positions, num_rows, torch.int64, None, None),
    )
    parameters = tuple(p.to(logits.device, non_blocking=True) for p in parameters)
    with torch.no_grad():
        chosen = choose_impl(impl, HAS_NATIVE if native_takes(logits) else HAS, logits)
        if chosen == "native":
            return _native_sample(logits, parameters)
        if chosen == "triton":
            return _triton_sample(logits, parameters)
        return reference.sample(logits, *parameters)


def sample_work(num_rows: int, vocab_size: int, dtype_bytes: int) -> Work:
    """Work of ``sample``: every logit read once, an exponential and a comparison each."""
    elements = num_rows * vocab_size
    return Work(4 * elements, elements * dtype_bytes + num_rows * 8)


def _native_sample(logits: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    num_rows, vocab_size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    parameters = tuple(p.contiguous() for p in parameters)
    drawn = torch.empty(num_rows, dtype=torch.int64)
    _functions()[logits.dtype](
        logits.data_ptr(),
        logits.stride(0),
        *(p.data_ptr() for p in parameters),
        drawn.data_ptr(),
        num_rows,
        vocab_size,
    )
    return drawn


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("sampling", "sample", "pnpppppppnn")


def _triton_sample(logits: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    from blocks.ops._triton.sampling import _sample_kernel

    num_rows, vocab_size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    drawn = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    tile = min(TILE, 1 << (vocab_size - 1).bit_length())
    if num_rows > 0:
        launch: Any = _sample_kernel[(num_rows,)]
        launch(
            logits,
            logits.stride(0),
            *(p.contiguous() for p in parameters),
            drawn,
            vocab_size,
            NUM_TILES=-(-vocab_size // tile),
            TILE=tile,
            num_warps=8,
        )
    return drawn


def per_row(
    name: str,
    value: PerRow,
    num_rows: int,
    dtype: torch.dtype,
    low: float | int | None,
    high: float | int | None,
    *,
    open_low: bool = False,
) -> Tensor:
    """A parameter as a tensor [num_rows] of ``dtype``, its range checked unless on an accelerator.

    ``high`` of infinity means any finite number.
    """
    if not isinstance(value, Tensor):
        value = torch.tensor(value)
    integral = not value.is_floating_point() and value.dtype != torch.bool
    if dtype == torch.int64 and not integral and value.numel() > 0:
        raise TypeError(f"{name} dtype: expected integers, got {value.dtype}")
    if value.dim() == 0:
        value = value.expand(num_rows)
    _checks.check_shape(name, value, (num_rows,), "one number per row of logits, or one for all")
    if value.device.type == "cpu" and low is not None and num_rows > 0:
        least, most = (n.item() for n in value.aminmax())  # NaN propagates and fails both
        ok = least > low if open_low else least >= low
        if high is not None:
            ok = ok and (most < high if high == math.inf else most <= high)
        if not ok:
            left, right = "(" if open_low else "[", ")" if high in (None, math.inf) else "]"
            wanted = f"numbers in {left}{low}, {'inf' if high is None else high}{right}"
            raise _checks.fail(name, wanted, least if least == most else f"{least} to {most}")
    return value.to(dtype)
