"""Held-out loss, and the same in bits per byte so that tokenizers can be compared."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LossSum = Callable[[Tensor, Tensor], Tensor]
"""(inputs, labels), both int64 [num_rows, context_len] -> summed negative log-likelihood, nats."""


class HeldOut(NamedTuple):
    """loss: nats per token. bits_per_byte: of the text those tokens stand for."""

    loss: float
    bits_per_byte: float


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Summed negative log-likelihood in nats, over bytes of text, in bits.

    >>> round(bits_per_byte(8 * math.log(2), 8), 9)
    1.0
    """
    return total_nats / math.log(2) / num_bytes


@torch.no_grad()
def evaluate(
    loss_sum: LossSum,
    stream: np.ndarray,
    lengths: np.ndarray,
    *,
    context_len: int,
    batch_size: int,
    max_tokens: int | None = None,
) -> HeldOut:
    """Loss over a token stream in windows that do not overlap: each token is predicted once.

    Args:
        stream: the held-out tokens. lengths: bytes each token id stands for.
        max_tokens: look at so many only, in windows spread evenly (at least one window).
    """
    num_windows = (len(stream) - 1) // context_len
    if num_windows == 0:
        context_len, num_windows = len(stream) - 1, 1
    wanted = num_windows
    if max_tokens is not None:
        wanted = max(1, min(num_windows, max_tokens // context_len))
    starts = np.arange(wanted) * num_windows // wanted * context_len  # spread over the stream
    windows = np.stack([stream[start : start + context_len + 1] for start in starts])
    tokens = torch.from_numpy(windows.astype(np.int64))  # [wanted, context_len + 1]
    total = sum(
        loss_sum(tokens[i : i + batch_size, :-1], tokens[i : i + batch_size, 1:]).double().item()
        for i in range(0, wanted, batch_size)
    )
    num_bytes = int(lengths[windows[:, 1:]].sum())
    return HeldOut(total / (wanted * context_len), bits_per_byte(total, num_bytes))
