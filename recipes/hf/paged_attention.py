"""Our attention and our pages inside a transformers model: ``attn_implementation="blocks"``.

Importing this module registers the name. Without a cache, or with one of transformers' own, the
keys of a call go through ``prefill``, gradients included. With a ``PagedCache`` they are written
into pages by ``write_kv`` and read from there by ``paged_extend``; a beam search then shares pages
between its beams instead of copying whole caches.

    model.set_attn_implementation("blocks")
    cache = PagedCache(model.config, max_tokens=4096)
    model.generate(**inputs, past_key_values=cache)
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from blocks._checks import check, fail
from blocks.attention import paged_extend, prefill
from blocks.kv import BlockManager, KVCache, OutOfBlocks, write_kv

NAME = "blocks"


class PagedCache(Cache):
    """The keys and values of a batch in pages; what ``generate`` takes as ``past_key_values``.

    Padding takes no slot: a row of the batch holds only its real tokens. Rows that are repeated or
    reordered share their pages until one of them writes (copy-on-write).

    Args:
        config: the model's; says how many layers there are.
        max_tokens: tokens of all rows together that must fit, each row's rounded up to whole pages.
        block_size: tokens of a page.

    Raises (from the model's forward pass):
        OutOfBlocks: more tokens than ``max_tokens``; nothing was written, so ``reset()`` it or
            take a larger one.
    """

    def __init__(self, config: PretrainedConfig, *, max_tokens: int, block_size: int = 16) -> None:
        for name, value in (("max_tokens", max_tokens), ("block_size", block_size)):
            positive = isinstance(value, int) and value > 0
            check(positive, name, "a positive whole number of tokens", repr(value))
        num_layers = config.get_text_config(decoder=True).num_hidden_layers
        self.paged_layers = [PagedLayer(self, i) for i in range(num_layers)]
        super().__init__(layers=list(self.paged_layers))
        num_blocks = -(-max_tokens // block_size) + 1
        self.max_tokens = max_tokens
        self.manager = BlockManager(num_blocks=num_blocks, block_size=block_size)
        self.kv: KVCache | None = None
        self._rows: list[int] = []  # sequence id of every row of the batch
        self._ids = itertools.count()
        self._step: _Step | None = None

    def lens(self) -> list[int]:
        """Real tokens of every row."""
        return [self.manager.table(row).num_tokens for row in self._rows]

    def reset(self) -> None:
        """Forget every token and keep the memory."""
        self._replace([])
        for layer in self.paged_layers:
            layer.seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes a fork of row ``beam_idx[i]``: no key or value is copied."""
        self._replace(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times, sharing its pages."""
        self._replace([row for row in range(len(self._rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._replace(torch.arange(len(self._rows), device=indices.device)[indices].tolist())

    def step(self, layer: int, key: Tensor, mask: Tensor | None) -> "_Step":
        """Where the new tokens of this forward pass go; worked out at its first layer."""
        seen = self.paged_layers[layer].seen
        if self._step is None or self._step.seen != seen:
            self._step = self._plan(seen, key, mask)
        return self._step

    def _plan(self, seen: int, key: Tensor, mask: Tensor | None) -> "_Step":
        batch, num_kv_heads, num_new, head_dim = key.shape
        if self.kv is None:
            self.kv = KVCache(
                self.manager.num_usable_blocks + 1,
                num_layers=len(self.paged_layers),
                block_size=self.manager.block_size,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                dtype=key.dtype,
                device=key.device,
            )
        if not self._rows:
            self._rows = [self._new_row() for _ in range(batch)]
        hint = "reset() the cache before another batch"
        check(batch == len(self._rows), "batch size", len(self._rows), batch, hint)
        real = None if mask is None else mask[:, -num_new:]
        counts = [num_new] * batch if real is None else real.sum(1).tolist()
        starts = self.lens()
        self._reserve([start + count for start, count in zip(starts, counts, strict=True)], starts)
        copies = self.manager.take_copies()
        if copies:
            self.kv.copy_blocks(copies)
        tables = [self.manager.table(row) for row in self._rows]
        slots = [
            slot
            for table, start, count in zip(tables, starts, counts, strict=True)
            for slot in table.slots(start, start + count)
        ]
        width = max(len(table.block_ids) for table in tables)
        padded = [table.block_ids + [0] * (width - len(table.block_ids)) for table in tables]
        device = key.device
        return _Step(
            seen=seen,
            real=real,
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            block_table=torch.tensor(padded, dtype=torch.int32, device=device),
            seq_lens=torch.tensor(self.lens(), dtype=torch.int32, device=device),
            cu_seqlens_q=_running_sums(counts, device),
        )

    def _reserve(self, wanted: Sequence[int], before: Sequence[int]) -> None:
        for i, num_tokens in enumerate(wanted):
            if num_tokens == before[i] or self.manager.append(self._rows[i], num_tokens):
                continue
            for row, length in zip(self._rows[:i], before[:i], strict=True):
                self._shorten(row, length)
            raise OutOfBlocks(
                f"PagedCache: expected at most {self.max_tokens} tokens in "
                f"{self.manager.num_usable_blocks} pages of {self.manager.block_size}, got "
                f"{sum(wanted)} in {len(wanted)} rows, each with pages of its own; "
                f"make it with a larger max_tokens"
            )

    def _shorten(self, row: int, length: int) -> None:
        self.manager.table(row).num_tokens = length

    def _replace(self, parents: list[int]) -> None:
        rows = [self._new_row(self._rows[parent]) for parent in parents]
        for row in self._rows:
            self.manager.free(row)
        self._rows = rows
        self._step = None

    def _new_row(self, parent: int | None = None) -> int:
        row = next(self._ids)
        if parent is None:
            self.manager.allocate(row, [], 0)
        else:
            self.manager.fork(parent, row)
        return row


class PagedLayer(CacheLayerMixin):
    """One layer of a ``PagedCache``: counts tokens, and marks new keys for ``attend``.

    seen: columns of the attention mask so far, padding included.
    """

    def __init__(self, cache: PagedCache, layer: int) -> None:
        super().__init__()
        self.cache, self.layer, self.seen = cache, layer, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the pages are made when the first keys show their shape."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
        """The new keys and values as they are; ``attend`` writes them, for it knows the mask."""
        self.seen += key_states.shape[2]
        key_states.paged_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1


class _Step(NamedTuple):
    """One forward pass; seen identifies it, real [batch, num_new] tells tokens from padding."""

    seen: int
    real: Tensor | None
    slots: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; shapes are its own.

    Args:
        query: [batch, num_heads, num_new, head_dim]; key, value: [batch, num_kv_heads, ...].
        attention_mask: bool [batch, num_keys], False for padding; None when there is none.
        s_aux: attention sinks.
        position_ids: where they start again, without mask and cache, a packed document starts.

    Returns:
        [batch, num_new, num_heads, head_dim], zeros at padding; no attention weights.
    """
    check(dropout == 0, "attention dropout", 0, dropout, "set attention_dropout=0 in the config")
    if attention_mask is not None and attention_mask.dim() != 2:
        got = f"{attention_mask.dim()} dimensions"
        raise fail("attention_mask", "2 dimensions [batch, num_keys]", got, "use attn 'sdpa'")
    options: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    options["sinks"] = None if s_aux is None else s_aux.float()
    layer = getattr(key, "paged_layer", None)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if layer is not None:
        return _paged(layer, query, key, value, attention_mask, options), None
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return _dense(query, key, value, attention_mask, position_ids, causal, options), None


def _paged(layer: PagedLayer, query, key, value, mask: Tensor | None, options: dict) -> Tensor:
    step = layer.cache.step(layer.layer, key.transpose(1, 2), mask)
    kv = layer.cache.kv
    assert kv is not None, "the first layer made the pages"
    key_cache, value_cache = kv.key(layer.layer), kv.value(layer.layer)
    q, k, v = (_pack(t, step.real) for t in (query, key, value))
    write_kv(k, v, key_cache, value_cache, step.slots)
    paged = (key_cache, value_cache, step.block_table, step.seq_lens, step.cu_seqlens_q)
    return _unpack(paged_extend(q, *paged, **options), query.shape, step.real)


def _dense(query, key, value, mask, position_ids, causal: bool, options: dict) -> Tensor:
    batch, num_new = query.shape[:2]
    num_keys = key.shape[1]
    mask = None if mask is None else mask[:, -num_keys:]
    real = None if mask is None else mask[:, -num_new:]
    if mask is not None and real is not None:
        new, total = real.sum(1).tolist(), mask.sum(1).tolist()
    else:
        new, total = [num_new] * batch, [num_keys] * batch
        if num_new == num_keys and position_ids is not None:
            new = total = _documents(position_ids.expand(batch, num_new))
    bounds = _running_sums(new, query.device), _running_sums(total, query.device)
    q, k, v = _pack(query, real), _pack(key, mask), _pack(value, mask)
    if not causal:
        options = {**options, "window": None}
    return _unpack(prefill(q, k, v, *bounds, causal=causal, **options), query.shape, real)


def _documents(position_ids: Tensor) -> list[int]:
    """Lengths of the runs of rising positions, row after row."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = starts.flatten().nonzero().flatten()
    ends = torch.cat([first[1:], first.new_tensor([position_ids.numel()])])
    return (ends - first).tolist()


def _pack(rows: Tensor, real: Tensor | None) -> Tensor:
    """[batch, length, ...] without padding: [num_tokens, ...]."""
    return rows.flatten(0, 1) if real is None else rows[real]


def _unpack(packed: Tensor, shape: torch.Size, real: Tensor | None) -> Tensor:
    """The inverse of ``_pack``, zeros at padding."""
    if real is None:
        return packed.view(shape)
    return packed.new_zeros(shape).masked_scatter(real[:, :, None, None], packed)


def _running_sums(lens: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=device)


def _padding_mask(
    *, kv_length: int, attention_mask: Tensor | None = None, **_: Any
) -> Tensor | None:
    """[batch, kv_length] where there is padding, else None: windows are the kernels' own."""
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    mask = attention_mask[:, -kv_length:].bool()
    return None if mask.shape[1] == kv_length and bool(mask.all()) else mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _padding_mask)
