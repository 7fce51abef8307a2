"""Rows of tokens. Which tokens step n sees depends on (corpus, seed, n) and on nothing else.

So a resumed run needs a step number and no saved iterator. A row is either a window of the packed
text stream or a run of docstring conversations; the two kinds are interleaved in a fixed rhythm.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from blocks._checks import check
from recipes.train import chat
from recipes.train.corpus import Document, Pair

IGNORE = -100  # label of a position that no loss is taken at


@dataclasses.dataclass(frozen=True)
class Batch:
    """inputs, labels: int64 [batch_size, context_len]; labels are the next token, or IGNORE."""

    inputs: Tensor
    labels: Tensor


class TextRows:
    """Windows of the packed text stream, in a new order and with a new phase every epoch."""

    def __init__(self, stream: np.ndarray, context_len: int, seed: int) -> None:
        self.num_rows = len(stream) // context_len - 1  # per epoch; one is left for the phase
        expected, hint = (
            f"at least {2 * context_len} tokens",
            "give more text or a lower context_len",
        )
        check(self.num_rows > 0, "training text", expected, len(stream), hint)
        self._stream, self._context_len = stream, context_len
        self._epoch = lru_cache(2)(lambda epoch: self._order(seed, epoch))

    def _order(self, seed: int, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng((seed, 1, epoch))
        return int(rng.integers(self._context_len)), rng.permutation(self.num_rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(index, self.num_rows)
        phase, order = self._epoch(epoch)
        start = phase + int(order[place]) * self._context_len
        window = self._stream[start : start + self._context_len + 1]
        return window[:-1], window[1:]


class ChatRows:
    """Rows of docstring conversations.

    Every pair is asked once an epoch; what room is left in a row goes to common names. Loss is
    taken on answers only. Some rows open with a system message.
    """

    def __init__(
        self, pairs: Sequence[Pair], tokenizer: Tokenizer, context_len: int, seed: int
    ) -> None:
        self._context_len, self._seed, self._tokenizer = context_len, seed, tokenizer
        entries: list[Pair | tuple[str, str]] = [*pairs, *chat.SMALL_TALK]
        asked = [chat.ask(p, random.Random(0)) if isinstance(p, Pair) else p for p in entries]
        lengths = [len(self._encode(q, a)[0]) for q, a in asked]
        mean = sum(lengths) / len(lengths)
        self._per_row = max(1, int(0.75 * context_len / mean))
        self._entries = entries
        self._common = [*filter(chat.is_common, pairs), *chat.SMALL_TALK]
        self.num_rows = math.ceil(len(entries) / self._per_row)  # per epoch
        self._epoch = lru_cache(2)(
            lambda epoch: np.random.default_rng((seed, 2, epoch)).permutation(len(entries))
        )

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(index, self.num_rows)
        choice = random.Random(f"{self._seed} {index}")
        chosen = self._epoch(epoch)[place * self._per_row : (place + 1) * self._per_row]
        ids: list[int] = []
        labels: list[int] = []
        if choice.random() < 0.15:
            system = chat.turn("system", choice.choice(chat.SYSTEM_PROMPTS))
            ids += self._tokenizer.encode(system, add_special_tokens=False).ids
            labels += [IGNORE] * len(ids)
        for entry in chosen:
            self._add(ids, labels, self._entries[entry], choice)
        while len(ids) <= self._context_len:
            self._add(ids, labels, choice.choice(self._common), choice)
        window = slice(0, self._context_len)
        return np.asarray(ids[window]), np.asarray(labels[1 : self._context_len + 1])

    def _add(self, ids: list[int], labels: list[int], entry, choice: random.Random) -> None:
        question, answer = chat.ask(entry, choice) if isinstance(entry, Pair) else entry
        tokens, start = self._encode(question, answer)
        ids += tokens
        labels += [IGNORE] * start + tokens[start:]

    def _encode(self, question: str, answer: str) -> tuple[list[int], int]:
        asked = chat.turn("user", question) + chat.ROLES["assistant"]
        head = self._tokenizer.encode(asked, add_special_tokens=False).ids
        tail = self._tokenizer.encode(answer + chat.END, add_special_tokens=False).ids
        return head + tail, len(head)


class Batches:
    """``batch(step)`` for any step, in any order.

    Args:
        chat_rows: None where the corpus has no pairs or ``chat_share`` is 0.
        chat_share: share of chat rows among all rows.
    """

    def __init__(
        self, text: TextRows, chat_rows: ChatRows | None, batch_size: int, chat_share: float
    ) -> None:
        self._text, self._chat, self._batch_size = text, chat_rows, batch_size
        self._chat_share = chat_share if chat_rows is not None else 0.0

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The rows of a step, or those ``rows`` of it: nothing else is made."""
        first = step * self._batch_size
        chosen = range(self._batch_size) if rows is None else rows
        made = [self._row(first + index) for index in chosen]
        inputs, labels = (np.stack(side).astype(np.int64) for side in zip(*made, strict=True))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        num_chat = math.floor(index * self._chat_share)  # chat rows before this one
        if self._chat is not None and math.floor((index + 1) * self._chat_share) > num_chat:
            return self._chat.row(num_chat)
        return self._text.row(index - num_chat)


def document_bounds(inputs: Tensor, end: int) -> Tensor:
    """Running sums of the lengths of the documents in ``inputs``, int32; a row ends one too.

    >>> document_bounds(torch.tensor([[5, 0, 7, 8], [6, 6, 6, 0]]), end=0).tolist()
    [0, 2, 4, 8]
    """
    closing = inputs == end
    closing[:, -1] = True
    ends = closing.flatten().nonzero().squeeze(1) + 1
    return torch.cat([ends.new_zeros(1), ends]).int()


def encode_stream(documents: Sequence[Document], tokenizer: Tokenizer) -> np.ndarray:
    """All documents one after another, each closed by the end token. uint16 (uint32 if needed)."""
    end = tokenizer.token_to_id(chat.END)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    encoded = tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
    return np.concatenate([np.asarray([*e.ids, end], dtype=dtype) for e in encoded])
