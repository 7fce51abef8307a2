"""One checked call of attention over keys, as every implementation is handed it."""

import itertools
from typing import Any, NamedTuple

from torch import Tensor

from blocks.attention._layout import check_bounds, check_lengths
from blocks.attention._options import Options
from blocks.attention._scales import NO_SCALES, Scales


class Call(NamedTuple):
    """Queries, where their keys lie, and how scores become weights.

    query: [num_tokens, num_heads, head_dim].
    key, value: pages, [num_blocks, block_size, num_kv_heads, head_dim]; without a table packed,
        [num_keys, num_kv_heads, head_dim]. Values may be narrower than keys.
    block_table: int32 [num_seqs, max_blocks]; None where keys are packed.
    seq_lens: int32 [num_seqs], context of each sequence; where keys are packed their running sums.
    cu_seqlens_q: int32 [num_seqs + 1], running sums of queries; None for one a sequence.
    options, scales: how scores become weights, and what stored keys and values are multiplied by.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    block_table: Tensor | None
    seq_lens: Tensor
    cu_seqlens_q: Tensor | None
    options: Options
    scales: Scales = NO_SCALES

    @property
    def paged(self) -> tuple[Any, Any, Any, Any, Any]:
        """Query, keys, values, table and lengths: the order of arguments everywhere."""
        return self[:5]

    @property
    def keywords(self) -> dict[str, Any]:
        """Options and scales by the names that callers give them."""
        return self.options._asdict() | {"k_scale": self.scales.k, "v_scale": self.scales.v}

    @property
    def table(self) -> Tensor:
        """The block table of a call whose keys are paged."""
        assert self.block_table is not None, "packed keys have no block table"
        return self.block_table

    @property
    def num_seqs(self) -> int:
        """Sequences, of which each has a context and any number of queries."""
        return self.seq_lens.shape[0] - (self.block_table is None)

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and of values."""
        return self.key.shape[-2]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key.shape[-2]

    @property
    def capacity(self) -> int:
        """Positions the block table can hold for one sequence."""
        return self.table.shape[1] * self.key.shape[1]


def check_contents(call: Call) -> tuple[list[int], list[int]]:
    """Look at lengths and block ids of a paged call, waiting for the device.

    Returns the rows where each sequence's queries begin and end, and the lengths of the contexts.
    """
    lens = call.seq_lens.tolist()
    if call.cu_seqlens_q is None:  # one row a sequence, which sees nothing where that is empty
        bounds, query_lens = list(range(len(lens) + 1)), [int(n != 0) for n in lens]
    else:
        bounds = check_bounds("cu_seqlens_q", call.cu_seqlens_q, call.query.shape[0])
        query_lens = [b - a for a, b in itertools.pairwise(bounds)]
    check_lengths(query_lens, lens, call.table, call.key, call.options.window)
    return bounds, lens
