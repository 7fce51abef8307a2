"""xformers' split-k Triton attention over pages."""

from einops import rearrange, repeat

from benches.cases import PagedCase
from benches.peers import Call, Peer, Unfit, theirs


def _decode(case: PagedCase) -> Call:
    fmha = theirs("xformers.ops").fmha
    masks = theirs("xformers.ops.fmha.attn_bias")

    if max(case.query_lens) > 1:
        raise Unfit("one query a sequence")
    batch, (_, size, kv_heads, _) = len(case.lens), case.key_cache.shape
    bias = masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [1] * batch, case.lens, block_tables=case.block_table, page_size=size
    )
    grouped = "batch (kv_head group) dim -> 1 batch kv_head group dim"
    q = rearrange(case.query, grouped, kv_head=kv_heads)
    shared = "block offset kv_head dim -> 1 (block offset) kv_head group dim"
    k, v = (repeat(c, shared, group=case.group) for c in (case.key_cache, case.value_cache))
    op = fmha.triton_splitk.FwOp
    return lambda: fmha.memory_efficient_attention_forward(q, k, v, bias, op=op).view(
        case.query.shape
    )


PEERS = [Peer("xformers split-k", "paged_decode", _decode, ("xformers",))]
