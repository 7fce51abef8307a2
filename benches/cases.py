"""Inputs of the attention operations at a chosen size, and the checks of what came out.

One case serves our call, every peer and the tests on an accelerator, so all compute the same thing.
"""

import dataclasses
import functools
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from blocks._work import Work
from blocks.attention import paged_extend_work, prefill_work, reference
from tests.numerics import assert_close


@dataclasses.dataclass
class PagedCase:
    """Queries over a paged cache of scattered blocks; one query a sequence is a decode.

    query: [num_tokens, num_heads, head_dim], the tails of the sequences.
    key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim].
    block_table: int32 [num_seqs, max_blocks].
    query_lens, lens: new tokens and length of each sequence, on the host.
    """

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    query_lens: list[int]
    lens: list[int]

    @classmethod
    def random(
        cls,
        lens: Sequence[int],
        query_lens: Sequence[int] | None = None,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> "PagedCase":
        """Random numbers in blocks that lie anywhere in the cache."""
        generator = torch.Generator(device).manual_seed(sum(lens))
        blocks_of = [-(-n // block_size) for n in lens]
        num_blocks = sum(blocks_of) + 1
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        ids = 1 + torch.randperm(num_blocks - 1, generator=generator, device=device).int()
        table = torch.zeros((len(lens), max(blocks_of)), dtype=torch.int32, device=device)
        start = 0
        for row, count in zip(table, blocks_of, strict=True):
            row[:count] = ids[start : start + count]
            start += count
        query_lens = list(query_lens or [1] * len(lens))

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=dtype)

        query = normal(sum(query_lens), num_heads, head_dim)
        return cls(query, normal(*shape), normal(*shape), table, query_lens, list(lens))

    @functools.cached_property
    def seq_lens(self) -> Tensor:
        """int32 [num_seqs]."""
        return torch.tensor(self.lens, dtype=torch.int32, device=self.query.device)

    @functools.cached_property
    def cu_seqlens_q(self) -> Tensor:
        """int32 [num_seqs + 1]."""
        return running_sums(self.query_lens, self.query.device)

    @property
    def block_size(self) -> int:
        return self.key_cache.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key_cache.shape[2]

    @property
    def work(self) -> Work:
        """The algorithmic minimum."""
        return paged_extend_work(
            self.query_lens,
            self.lens,
            num_heads=self.query.shape[1],
            num_kv_heads=self.key_cache.shape[2],
            head_dim=self.query.shape[2],
            itemsize=self.query.element_size(),
        )

    def contiguous(self, cache: Tensor, sequence: int) -> Tensor:
        """[length, num_kv_heads, head_dim] of one sequence, a fresh copy."""
        blocks = cache[self.block_table[sequence].long()].flatten(0, 1)
        return blocks[: self.lens[sequence]]

    def check(self, output: Tensor, *, slack: float = 1.0) -> None:
        """Compare the first and last sequence, and one key head of each, with the reference."""
        ends = torch.tensor(self.query_lens).cumsum(0).tolist()
        for s in {0, len(self.lens) - 1}:
            rows = slice(ends[s] - self.query_lens[s], ends[s])
            heads = slice(0, self.group)
            k, v = (self.contiguous(c, s)[:, :1] for c in (self.key_cache, self.value_cache))
            expected = reference.prefill(
                self.query[rows, heads],
                k.to(self.query.dtype),
                v.to(self.query.dtype),
                running_sums(self.query_lens[s : s + 1], output.device),
                running_sums(self.lens[s : s + 1], output.device),
            )
            assert_close(output[rows, heads], expected, what=f"sequence {s}", slack=slack)


@dataclasses.dataclass
class PackedCase:
    """Causal sequences of one length whose keys lie beside each other, as in training.

    query: [batch * length, num_heads, head_dim]; key and value have num_kv_heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    batch: int
    length: int

    @classmethod
    def random(
        cls,
        batch: int,
        length: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        grad: bool = False,
    ) -> "PackedCase":
        """Random numbers, which ask for gradients with ``grad``."""
        generator = torch.Generator(device).manual_seed(length)
        shapes = [(batch * length, n, head_dim) for n in (num_heads, num_kv_heads, num_kv_heads)]
        query, key, value = (
            torch.randn(s, generator=generator, device=device, dtype=dtype).requires_grad_(grad)
            for s in shapes
        )
        return cls(query, key, value, batch, length)

    @functools.cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 [batch + 1]."""
        return running_sums([self.length] * self.batch, self.query.device)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    def heads_first(self) -> tuple[Tensor, ...]:
        """[batch, heads, length, head_dim], as torch's attention takes them; views."""
        apart = "(batch token) head dim -> batch head token dim"
        return tuple(rearrange(t, apart, batch=self.batch) for t in self.tensors)

    def tokens_first(self) -> tuple[Tensor, ...]:
        """[batch, length, heads, head_dim], as Flash-Attention takes them; views."""
        apart = "(batch token) head dim -> batch token head dim"
        return tuple(rearrange(t, apart, batch=self.batch) for t in self.tensors)

    @property
    def work(self) -> Work:
        """The algorithmic minimum of the forward pass."""
        return prefill_work(
            [self.length] * self.batch,
            num_heads=self.query.shape[1],
            num_kv_heads=self.key.shape[1],
            head_dim=self.query.shape[2],
            itemsize=self.query.element_size(),
        )

    def first_heads(self) -> "PackedCase":
        """The first sequence and the first key head alone: a reference for large sizes."""
        q, k, v = (t.detach()[: self.length] for t in self.tensors)
        return PackedCase(q[:, : self.group], k[:, :1], v[:, :1], 1, self.length)

    def check(self, output: Tensor, *, slack: float = 1.0) -> None:
        """Compare the first sequence and key head with the reference."""
        part = self.first_heads()
        expected = reference.prefill(*part.tensors, part.cu_seqlens)
        got = output.detach()[: self.length, : self.group]
        assert_close(got, expected, what="first heads", slack=slack)

    def check_gradients(self, found: Sequence[Tensor], grad: Tensor, *, slack: float = 2.0) -> None:
        """Compare the gradients of the first sequence and key head with the reference's."""
        part = self.first_heads()
        inputs = [t.float().requires_grad_() for t in part.tensors]
        output = reference.prefill(inputs[0], inputs[1], inputs[2], part.cu_seqlens)
        upstream = grad[: self.length, : self.group].float()
        expected = torch.autograd.grad(output, inputs, upstream)
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            got = ours[: self.length, : theirs.shape[1]]
            assert_close(got, theirs, what=f"gradient of {name}", slack=slack)


def running_sums(lens: Sequence[int], device: torch.device | str) -> Tensor:
    """[num_seqs + 1] int32 from 0."""
    return torch.tensor([0, *lens], dtype=torch.int64).cumsum(0).int().to(device)
