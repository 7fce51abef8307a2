"""Draw one token per row of logits: greedy, or by temperature, top-k, top-p and min-p.

The draw is a race: each kept token runs for an exponential time with its probability as the rate,
and the first to arrive is drawn. The times come from a counter, not from a generator's state.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from ctypes import c_int
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._library import choose, functions

HAS = ("reference", "triton")
TILE = 8192
"""Most logits a Triton program looks at in one go."""
GROUP = 32
"""Neighbouring logits whose largest is kept in the first pass; 128 bytes of fp32."""
MOST_GROUPS = 4096
"""Most groups of a row."""
MAX_GROUPS = 128
"""Most groups of this size whose logits a program holds in registers."""
SAMPLE_WARPS = 16
"""Warps of a Triton program: one program must keep enough loads in flight for its row."""
PerRow = Tensor | Sequence[float] | Sequence[int] | float | int
"""One number for all rows, or one per row as a list or a tensor [num_rows]."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What values of one parameter are allowed.

    name: of the parameter, for messages.
    dtype: it is computed in.
    low, high: bounds; None for none.
    interval: how the bounds are written; a parenthesis leaves the bound itself out.
    """

    name: str
    dtype: torch.dtype
    low: float | int | None = None
    high: float | int | None = None
    interval: str = ""

    def check_kind(self, dtype: torch.dtype) -> None:
        """Refuse fractions where integers are wanted."""
        if self.dtype == torch.int64 and (dtype.is_floating_point or dtype == torch.bool):
            raise TypeError(f"{self.name} dtype: expected integers, got {dtype}")

    def kernel_number(self, value: float | int) -> float | int:
        """A number as a kernel argument of the rule's kind."""
        return float(value) if self.dtype.is_floating_point else int(value)

    def check_range(self, values: Tensor) -> None:
        """Refuse values out of bounds, unless they are on an accelerator: looking synchronises."""
        if self.low is None or values.device.type != "cpu" or values.numel() == 0:
            return
        least, most = (n.item() for n in values.aminmax())  # a NaN shows in both
        ok = least > self.low if self.interval[0] == "(" else least >= self.low
        if self.high is not None:
            ok = ok and (most < self.high if self.interval[-1] == ")" else most <= self.high)
        got = least if least == most else f"{least} to {most}"
        _checks.check(ok, self.name, f"numbers in {self.interval}", got)


RULES = (
    Rule("temperature", torch.float32, 0.0, math.inf, "[0, inf)"),
    Rule("top_k", torch.int64, 0, None, "[0, inf)"),
    Rule("top_p", torch.float32, 0.0, 1.0, "(0, 1]"),
    Rule("min_p", torch.float32, 0.0, 1.0, "[0, 1]"),
    Rule("seeds", torch.int64),
    Rule("positions", torch.int64),
)


@_checks.expects_tensors
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
    given = (temperature, top_k, top_p, min_p, seeds, positions)
    parameters = tuple(
        _per_row(rule, value, num_rows) for rule, value in zip(RULES, given, strict=True)
    )
    with torch.no_grad():
        chosen = choose(impl, HAS, logits, traced=False)
        if chosen == "native":
            return _native_sample(logits, parameters)
        for rule, values in zip(RULES, parameters, strict=True):
            rule.check_range(values)
        if chosen == "triton":
            return _triton_sample(logits, given, parameters)
        parameters = tuple(p.to(logits.device, non_blocking=True) for p in parameters)
        return reference.sample(logits, *parameters)


def sample_work(num_rows: int, vocab_size: int, dtype_bytes: int) -> Work:
    """Work of ``sample``: every logit read once, an exponential and a comparison each."""
    elements = num_rows * vocab_size
    return Work(4 * elements, elements * dtype_bytes + num_rows * 8)


def _native_sample(logits: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    num_rows, vocab_size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    parameters = tuple((p if p.is_cpu else p.cpu()).contiguous() for p in parameters)
    drawn = torch.empty(num_rows, dtype=torch.int64)
    out_of_range = _functions()[logits.dtype](
        logits.data_ptr(),
        logits.stride(0),
        *(p.data_ptr() for p in parameters),
        drawn.data_ptr(),
        num_rows,
        vocab_size,
    )
    if out_of_range:  # nothing was drawn; the check says of what
        for rule, values in zip(RULES, parameters, strict=True):
            rule.check_range(values)
    return drawn


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., int]]:
    return functions("sampling", "sample", "pnpppppppnn", c_int)


def _triton_sample(
    logits: Tensor, given: tuple[PerRow, ...], parameters: tuple[Tensor, ...]
) -> Tensor:
    """A number for all rows travels with the launch; anything else is sent to the device."""
    from blocks.ops._triton.sampling import _sample_kernel

    num_rows, vocab_size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    drawn = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    tiles = sample_tiles(vocab_size)
    maxima = torch.empty(num_rows, tiles["NUM_GROUPS"], device=logits.device)
    groups = torch.empty(num_rows, tiles["MAX_GROUPS"], dtype=torch.int32, device=logits.device)
    numbers = [isinstance(value, (int, float)) for value in given]
    passed = (
        rule.kernel_number(value) if isinstance(value, (int, float))
        else tensor.to(logits.device, non_blocking=True).contiguous()
        for rule, value, tensor in zip(RULES, given, parameters, strict=True)
    )  # fmt: skip
    if num_rows > 0:
        launch: Any = _sample_kernel[(num_rows,)]
        launch(
            logits,
            logits.stride(0),
            *passed,
            drawn,
            maxima,
            groups,
            vocab_size,
            **tiles,
            PER_ROW=sum(1 << place for place, number in enumerate(numbers) if not number),
            num_warps=SAMPLE_WARPS,
        )
    return drawn


def sample_tiles(vocab_size: int) -> dict[str, int]:
    """Sizes of a Triton program's tile, groups and candidates; groups grow with the vocabulary."""
    group = GROUP
    while -(-vocab_size // group) > MOST_GROUPS:
        group *= 2
    tile = max(group, min(TILE, 1 << (vocab_size - 1).bit_length()))
    num_tiles = -(-vocab_size // tile)
    num_groups = 1 << (num_tiles * tile // group - 1).bit_length()
    return {
        "NUM_TILES": num_tiles,
        "TILE": tile,
        "GROUP": group,
        "NUM_GROUPS": num_groups,
        "MAX_GROUPS": min(max(1, MAX_GROUPS * GROUP // group), num_groups),
        "RACE_TILE": max(1, tile // 2),
    }


@functools.lru_cache(maxsize=64)
def _same_for_all(value: float | int, dtype: torch.dtype, num_rows: int) -> Tensor:
    """Read only: one tensor serves every call with the same number for all rows."""
    return torch.full((num_rows,), value, dtype=dtype)


def _per_row(rule: Rule, value: PerRow, num_rows: int) -> Tensor:
    """A parameter as a tensor [num_rows] of the rule's dtype."""
    if isinstance(value, (int, float)):
        rule.check_kind(torch.int64 if isinstance(value, int) else torch.float32)
        try:
            return _same_for_all(value, rule.dtype, num_rows)
        except (RuntimeError, OverflowError) as error:
            raise _checks.fail(rule.name, f"a number that fits {rule.dtype}", value) from error
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value, dtype=None if len(value) else rule.dtype)
        except (RuntimeError, OverflowError, TypeError, ValueError) as error:
            what = f"numbers that fit {rule.dtype}, one per row"
            raise _checks.fail(rule.name, what, str(value)[:80]) from error
    rule.check_kind(value.dtype)
    if value.dim() == 0:
        value = value.expand(num_rows)
    _checks.check_shape(rule.name, value, (num_rows,), "one number per row, or one for all")
    return value.to(rule.dtype)
