"""Attention for a stage: of whole rows at once, or of one token slice over the slices before it."""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from blocks.attention import SlicePrefix, prefill
from recipes.model import Attend, ModelConfig
from recipes.train.attend import blocked_attend

_blocked = functools.lru_cache(16)(blocked_attend)


def slice_attend(config: ModelConfig, context: Any) -> Attend:
    """Causal attention of the slice of ``context`` inside its rows, or inside their documents.

    ``context.data``: ``inputs`` [num_rows, seq_len] and, where tokens see their own document only,
    ``documents``, int32 running sums of the documents' lengths over all rows (rows end documents).
    ``context.state`` keeps one ``SlicePrefix`` a layer, and a row where there are documents.
    """
    num_rows, seq_len = context.data["inputs"].shape
    documents = context.data.get("documents")
    if (context.start, context.stop) != (0, seq_len):
        if documents is None:
            return _slice_of_rows(config, context, num_rows, seq_len)
        return _slice_of_documents(config, context, num_rows, seq_len, documents)
    return _whole_rows(config, num_rows, seq_len, documents)


def _whole_rows(
    config: ModelConfig, num_rows: int, seq_len: int, documents: Tensor | None
) -> Attend:
    blocked = _blocked(config, seq_len)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        spec = config.attention(layer)
        plain = documents is None and spec.window is None and spec.softcap is None
        if plain and query.device.type == "cpu":  # a few large products beat prefill there
            return blocked(layer, query, key, value)
        bounds = documents
        if bounds is None:
            bounds = torch.arange(num_rows + 1, dtype=torch.int32, device=query.device) * seq_len
        return prefill(query, key, value, bounds, **spec._asdict())

    return attend


def _slice_of_rows(config: ModelConfig, context: Any, num_rows: int, seq_len: int) -> Attend:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        prefix = context.state.get(layer)
        if prefix is None:
            shape = (num_rows, seq_len, *key.shape[1:])
            prefix = SlicePrefix.empty(*shape, dtype=key.dtype, device=key.device)
            context.state[layer] = prefix
        q, k, v = (t.unflatten(0, (num_rows, -1)) for t in (query, key, value))
        spec = config.attention(layer)._asdict()
        return prefix.attend(q, k, v, context.start, **spec).flatten(0, 1)

    return attend


def _slice_of_documents(
    config: ModelConfig, context: Any, num_rows: int, seq_len: int, documents: Tensor
) -> Attend:
    bounds = context.state.get("documents")
    if bounds is None:
        bounds = context.state["documents"] = row_documents(documents, num_rows, seq_len)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        spec, parts = config.attention(layer)._asdict(), []
        rows = zip(*(t.chunk(num_rows) for t in (query, key, value)), strict=True)
        for row, (q, k, v) in enumerate(rows):
            prefix = context.state.get((layer, row))
            if prefix is None:
                shape = (seq_len, *key.shape[1:])
                prefix = SlicePrefix.empty(*shape, dtype=key.dtype, device=key.device)
                context.state[layer, row] = prefix
            parts.append(prefix.attend(q, k, v, context.start, cu_seqlens=bounds[row], **spec))
        return torch.cat(parts)

    return attend


def row_documents(documents: Tensor, num_rows: int, seq_len: int) -> list[Tensor]:
    """For every row the running sums of the lengths of its documents, from 0 to ``seq_len``.

    >>> [t.tolist() for t in row_documents(torch.tensor([0, 2, 4, 8]), 2, 4)]
    [[0, 2, 4], [0, 4]]
    """
    ends = torch.arange(num_rows + 1, device=documents.device) * seq_len
    places = torch.searchsorted(documents, ends.to(documents.dtype)).tolist()
    return [
        documents[first : last + 1] - row * seq_len
        for row, (first, last) in enumerate(itertools.pairwise(places))
    ]
