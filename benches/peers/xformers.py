"""xformers' split-k Triton attention over pages."""

from benches.cases import PagedCase
from benches.peers import Call, Peer, Unfit, theirs


def _decode(case: PagedCase) -> Call:
    fmha = theirs("xformers.ops").fmha
    masks = theirs("xformers.ops.fmha.attn_bias")

    if max(case.query_lens) > 1:
        raise Unfit("one query a sequence")
    batch, (num_blocks, size, kv_heads, head_dim) = len(case.lens), case.key_cache.shape
    bias = masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [1] * batch, case.lens, block_tables=case.block_table, page_size=size
    )
    group = case.group
    q = case.query.view(1, batch, kv_heads, group, head_dim)
    k, v = (
        c.view(1, num_blocks * size, kv_heads, 1, head_dim).expand(-1, -1, -1, group, -1)
        for c in (case.key_cache, case.value_cache)
    )
    op = fmha.triton_splitk.FwOp
    return lambda: fmha.memory_efficient_attention_forward(q, k, v, bias, op=op).view(
        case.query.shape
    )


PEERS = [Peer("xformers split-k", "paged_decode", _decode, ("xformers",))]
