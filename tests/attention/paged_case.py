"""Random paged batches: valid slots hold numbers, everything else NaN or an invalid block id."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass
class PagedCase:
    """Inputs of ``paged_extend``, and each sequence's keys and values laid out contiguously."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def paged(self) -> tuple[Tensor, ...]:
        """Arguments of ``paged_extend``; the first five are those of ``paged_decode``."""
        return (
            self.query,
            self.key_cache,
            self.value_cache,
            self.block_table,
            self.seq_lens,
            self.cu_seqlens_q,
        )

    @property
    def packed(self) -> tuple[Tensor, ...]:
        """The same batch as arguments of ``prefill``."""
        lens = self.seq_lens.tolist()
        return (
            self.query,
            torch.cat(self.keys),
            torch.cat(self.values),
            self.cu_seqlens_q,
            running_sums(lens, self.query.device),
        )


def running_sums(lens: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """[num_seqs + 1] int32 from 0."""
    return torch.tensor([0, *lens], dtype=torch.int64).cumsum(0).int().to(device)


def paged_case(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    spare_blocks: int = 3,
) -> PagedCase:
    """A batch whose blocks are scattered over a NaN-filled cache."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    blocks_of = [-(-n // block_size) for n in seq_lens]
    num_blocks = sum(blocks_of) + spare_blocks
    ids = torch.randperm(num_blocks, generator=generator).int().tolist()
    key_cache = torch.full((num_blocks, block_size, num_kv_heads, head_dim), float("nan"))
    key_cache = key_cache.to(dtype).to(device)
    value_cache = key_cache.clone()
    table = torch.full((len(seq_lens), max(blocks_of, default=0) + 1), -7, dtype=torch.int32)
    keys, values = [], []
    for s, seq_len in enumerate(seq_lens):
        keys.append(normal(seq_len, num_kv_heads, head_dim))
        values.append(normal(seq_len, num_kv_heads, head_dim))
        for b in range(blocks_of[s]):
            table[s, b] = ids.pop()
            part = slice(b * block_size, (b + 1) * block_size)
            filled = len(keys[s][part])
            key_cache[int(table[s, b]), :filled] = keys[s][part]
            value_cache[int(table[s, b]), :filled] = values[s][part]
    return PagedCase(
        query=normal(sum(query_lens), num_heads, head_dim),
        key_cache=key_cache,
        value_cache=value_cache,
        block_table=table.to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        cu_seqlens_q=running_sums(query_lens, device),
        keys=keys,
        values=values,
    )
