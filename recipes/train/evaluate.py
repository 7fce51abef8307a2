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


class Windows(NamedTuple):
    """Held-out text as a model looks at it.

    tokens: int64 [num_windows, context_len + 1]; each window begins with the last token of its
        neighbour. num_bytes: of the text that is predicted.
    """

    tokens: Tensor
    num_bytes: int

    def padded(self, rows: int, context_len: int, ignore: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels as a model that takes ``rows`` windows at once looks at them.

        Args:
            ignore: label of what is padding.
        """
        count = -(-len(self.tokens) // rows) * rows
        inputs = torch.zeros(count, context_len, dtype=torch.int64)
        labels = torch.full((count, context_len), ignore)
        for side, part in ((inputs, self.tokens[:, :-1]), (labels, self.tokens[:, 1:])):
            side[: len(part), : part.shape[1]] = part
        return inputs, labels

    def held_out(self, total_nats: float) -> HeldOut:
        """From the loss summed over all windows."""
        num_tokens = self.tokens[:, 1:].numel()
        return HeldOut(total_nats / num_tokens, bits_per_byte(total_nats, self.num_bytes))


def cut_windows(
    stream: np.ndarray, lengths: np.ndarray, *, context_len: int, max_tokens: int | None = None
) -> Windows:
    """Windows that do not overlap: each token is predicted once.

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
    num_bytes = int(lengths[windows[:, 1:]].sum())
    return Windows(torch.from_numpy(windows.astype(np.int64)), num_bytes)


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
    """Loss over a token stream in the windows of ``cut_windows``, ``batch_size`` at a time."""
    windows = cut_windows(stream, lengths, context_len=context_len, max_tokens=max_tokens)
    total = sum(
        loss_sum(rows[:, :-1], rows[:, 1:]).double().item()
        for rows in windows.tokens.split(batch_size)
    )
    return windows.held_out(total)
