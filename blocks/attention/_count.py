"""Counts shared by the ``*_work`` functions."""

from collections.abc import Sequence
from typing import NamedTuple

from blocks._work import Work


class StoredKeys(NamedTuple):
    """How keys and values lie in memory.

    itemsize: bytes of an element.
    scale_kind: what a scale belongs to: ``none``, ``tensor``, ``head``, ``block`` or ``token``.
    block_size: tokens of a block.
    """

    itemsize: int
    scale_kind: str = "none"
    block_size: int = 16

    def scale_bytes(self, num_keys: Sequence[int], num_kv_heads: int) -> int:
        """Bytes of the scales of keys and values, for so many keys of each sequence."""
        counts = {
            "none": 0,
            "tensor": 1,
            "head": num_kv_heads,
            "block": sum(-(-n // self.block_size) for n in num_keys) * num_kv_heads,
            "token": sum(num_keys) * num_kv_heads,
        }
        return 2 * 4 * counts[self.scale_kind]


def visible_pairs(query_len: int, key_len: int, window: int | None, causal: bool = True) -> int:
    """Number of (query, key) pairs that take part, the last query at the last key.

    >>> visible_pairs(2, 5, None), visible_pairs(2, 5, 3), visible_pairs(2, 5, None, causal=False)
    (9, 6, 10)
    """
    if not causal:
        return query_len * key_len
    first = max(1, key_len - query_len + 1)  # keys the first query with any key sees
    longest = key_len if window is None else min(window, key_len)
    if first >= longest:
        return longest * (key_len - first + 1)
    rising = (longest - first) * (first + longest - 1) // 2  # rows that see first..longest - 1
    return rising + longest * (key_len - longest + 1)


def read_keys(query_len: int, key_len: int, window: int | None) -> int:
    """Number of keys that must be read: those some query sees."""
    if query_len == 0:
        return 0
    return key_len if window is None else min(key_len, window + query_len - 1)


def attention_work(
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None,
    causal: bool = True,
    stored: StoredKeys | None = None,
) -> Work:
    """Two products per visible pair and head; queries, outputs and seen keys and values once."""
    stored = stored or StoredKeys(itemsize)
    lens = list(zip(query_lens, key_lens, strict=True))
    pairs = sum(visible_pairs(q, k, window, causal) for q, k in lens)
    keys = [read_keys(q, k, window) for q, k in lens]
    rows = 2 * sum(query_lens) * num_heads
    key_bytes = 2 * sum(keys) * num_kv_heads * head_dim * stored.itemsize
    return Work(
        flops=4 * pairs * num_heads * head_dim,
        bytes=rows * head_dim * itemsize + key_bytes + stored.scale_bytes(keys, num_kv_heads),
    )


def backward_work(
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None,
    causal: bool = True,
    accumulated: bool = False,
) -> Work:
    """Five products a visible pair and head: 2.5 times the forward.

    Queries, outputs and both their gradients once; seen keys and values read, their gradients
    written, or read and written in float32 when ``accumulated``.
    """
    sizes = (num_heads, num_kv_heads, head_dim, itemsize, window, causal)
    forward = attention_work(query_lens, key_lens, *sizes)
    keys = sum(read_keys(q, k, window) for q, k in zip(query_lens, key_lens, strict=True))
    rows = 4 * sum(query_lens) * num_heads * head_dim * itemsize
    per_key = itemsize + (8 if accumulated else itemsize)
    return Work(
        flops=forward.flops * 5 // 2,
        bytes=rows + 2 * keys * num_kv_heads * head_dim * per_key,
    )
