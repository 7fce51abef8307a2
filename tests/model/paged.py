"""Sequences run through pages, as an engine would, with scattered blocks and poisoned memory."""

import torch

from blocks.kv import KVCache
from recipes.model import Decoder, decode_attend, paged_attend

BLOCK_SIZE = 4


class PagedRunner:
    """Feeds tokens of several sequences to a decoder and returns the logits of every new one.

    The blocks of each sequence are scattered over a cache that starts full of NaN: reading a slot
    that was never written shows in every logit.
    """

    def __init__(self, decoder: Decoder, num_seqs: int, max_len: int, seed: int = 0) -> None:
        config = self.config = decoder.config
        self.decoder = decoder
        per_seq = -(-max_len // BLOCK_SIZE)
        self.cache = KVCache(
            1 + num_seqs * per_seq,
            num_layers=config.num_layers,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=decoder.embed.weight.dtype,
        )
        self.cache.storage.fill_(float("nan"))
        order = torch.randperm(num_seqs * per_seq, generator=torch.Generator().manual_seed(seed))
        self.table = (order.view(num_seqs, per_seq) + 1).int()
        self.lens = [0] * num_seqs

    @torch.inference_mode()
    def step(self, new: list[torch.Tensor], *, decode: bool = False) -> list[torch.Tensor]:
        """``new[i]`` are the next tokens of sequence i, possibly none; logits of each."""
        starts = list(self.lens)
        self.lens = [n + len(t) for n, t in zip(starts, new, strict=True)]
        runs = [torch.arange(a, b) for a, b in zip(starts, self.lens, strict=True)]
        slots = torch.cat([self._slots(i, run) for i, run in enumerate(runs)])
        seq_lens = torch.tensor(self.lens, dtype=torch.int32)
        if decode:
            attend = decode_attend(self.config, self.cache, self.table, seq_lens, slots)
        else:
            sums = torch.tensor([0, *map(len, new)]).cumsum(0).int()
            attend = paged_attend(self.config, self.cache, self.table, seq_lens, sums, slots)
        logits = self.decoder.logits(self.decoder(torch.cat(new), torch.cat(runs), attend))
        return list(logits.split([len(t) for t in new]))

    def _slots(self, sequence: int, positions: torch.Tensor) -> torch.Tensor:
        blocks = self.table[sequence].long()[positions // BLOCK_SIZE]
        return blocks * BLOCK_SIZE + positions % BLOCK_SIZE
