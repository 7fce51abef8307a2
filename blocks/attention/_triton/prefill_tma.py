"""``prefill`` for Hopper: bulk tensor loads by one group of warps, products by two others."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import base2_scores, normalise, product


@triton.jit
def find_sequence(cu_q_ptr, block, num_seqs, TOKENS: tl.constexpr, HALVINGS: tl.constexpr):
    """As in ``attend.py``, in a fixed number of halvings: a loop would keep the compiler from
    specialising the warps."""
    low = 0
    high = num_seqs
    for _ in tl.static_range(HALVINGS):
        middle = tl.minimum((low + high) // 2, num_seqs - 1)
        before = tl.load(cu_q_ptr + middle) // TOKENS + middle <= block
        low = tl.where(before & (low < high), middle + 1, low)
        high = tl.where(before, high, tl.minimum(high, middle))
    return low - 1


@triton.jit
def _prefill_tma_kernel(
    query_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    key_ptr,  # [num_keys, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    cu_k_ptr,  # int32 [num_seqs + 1]
    cu_q_ptr,  # int32 [num_seqs + 1]
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_tokens, num_heads, HEAD_DIM], contiguous
    lse_ptr,  # float32 [num_tokens, num_heads] when HAS_LSE
    num_seqs, num_tokens, num_heads, num_blocks, stride_q_token, stride_q_head, stride_k_token,
    stride_k_head, stride_v_token, stride_v_head, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_Q: tl.constexpr, TILE_KV: tl.constexpr,
    TILE_D: tl.constexpr, CAUSAL: tl.constexpr, PERSISTENT: tl.constexpr, HALVINGS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_LSE: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One item of work: one query head and TILE_Q queries of one sequence.

    Items are in order of falling length: the last block of queries first, all heads of a block side
    by side (they share keys in L2). Without PERSISTENT a program does one item. With it, programs
    take items in turn, there and back (0 1 2 2 1 0), so that all get the same share of long ones;
    descriptors are then made once, because a load may still be reading the old one when the next
    item would overwrite it. That needs a single sequence and HEAD_DIM = TILE_D.

    Queries, keys and values come by tensor descriptor and end where their sequence ends: rows past
    it read as zeros. The compiler splits the loops into a warp group that loads and two that each
    compute half of the rows; this works for a single loop over the keys alone, so every tile is
    masked. The host guarantees TILE_Q = 128 and 4 warps, addresses and strides that are multiples
    of 16 bytes, at least one query, and num_blocks = num_tokens // TILE_Q + num_seqs.
    """
    log2e: tl.constexpr = 1.4426950408889634
    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    program = tl.program_id(0)
    num_items = num_blocks * num_heads
    num_rounds = 1
    if PERSISTENT:
        num_rounds = tl.cdiv(num_items, tl.num_programs(0))
        key_len = tl.load(cu_k_ptr + 1)
        query_len = num_tokens
        q_desc = tl.make_tensor_descriptor(
            query_ptr,
            shape=[query_len, num_heads * stride_q_head],
            strides=[stride_q_token, 1],
            block_shape=[TILE_Q, TILE_D],
        )
        k_desc = tl.make_tensor_descriptor(
            key_ptr,
            shape=[tl.maximum(key_len, 1), num_heads // GROUP * stride_k_head],
            strides=[stride_k_token, 1],
            block_shape=[TILE_KV, TILE_D],
        )
        v_desc = tl.make_tensor_descriptor(
            value_ptr,
            shape=[tl.maximum(key_len, 1), num_heads // GROUP * stride_v_head],
            strides=[stride_v_token, 1],
            block_shape=[TILE_KV, TILE_D],
        )
    for round in tl.range(0, num_rounds):
        item = program
        if PERSISTENT:
            there = round % 2 == 0
            item = round * tl.num_programs(0)
            item += tl.where(there, program, tl.num_programs(0) - 1 - program)
        block = num_blocks - 1 - item // num_heads  # negative in a last, incomplete round
        head = item % num_heads
        kv_head = head // GROUP
        if PERSISTENT:
            q_start = 0
            first_token = block * TILE_Q
            q_column = head * stride_q_head
            k_column = kv_head * stride_k_head
            v_column = kv_head * stride_v_head
        else:
            seq = find_sequence(cu_q_ptr, block, num_seqs, TILE_Q, HALVINGS)
            q_start = tl.load(cu_q_ptr + seq)
            query_len = tl.load(cu_q_ptr + seq + 1) - q_start
            key_start = tl.load(cu_k_ptr + seq)
            key_len = tl.load(cu_k_ptr + seq + 1) - key_start
            first_token = (block - (q_start // TILE_Q + seq)) * TILE_Q
            q_row = tl.minimum(q_start, num_tokens - 1).to(tl.int64)
            q_desc = tl.make_tensor_descriptor(
                query_ptr + q_row * stride_q_token + head.to(tl.int64) * stride_q_head,
                shape=[tl.maximum(query_len, 1), HEAD_DIM],
                strides=[stride_q_token, 1],
                block_shape=[TILE_Q, TILE_D],
            )
            k_row = key_start.to(tl.int64) * stride_k_token
            k_desc = tl.make_tensor_descriptor(
                key_ptr + k_row + kv_head.to(tl.int64) * stride_k_head,
                shape=[tl.maximum(key_len, 1), HEAD_DIM],
                strides=[stride_k_token, 1],
                block_shape=[TILE_KV, TILE_D],
            )
            v_row = key_start.to(tl.int64) * stride_v_token
            v_desc = tl.make_tensor_descriptor(
                value_ptr + v_row + kv_head.to(tl.int64) * stride_v_head,
                shape=[tl.maximum(key_len, 1), HEAD_DIM],
                strides=[stride_v_token, 1],
                block_shape=[TILE_KV, TILE_D],
            )
            q_column = 0
            k_column = 0
            v_column = 0
        token = first_token + offs_row
        position = key_len - query_len + token
        mask_row = (token >= 0) & (token < query_len)
        start = 0
        end = key_len
        if CAUSAL:
            last_token = tl.minimum(first_token + TILE_Q, query_len)
            end = tl.maximum(0, key_len - query_len + last_token)
        if HAS_WINDOW:
            start = tl.maximum(0, key_len - query_len + first_token - window + 1)
            start = start // TILE_KV * TILE_KV
        if (first_token < 0) | (first_token >= query_len):
            end = 0

        slopes = tl.zeros([TILE_Q], tl.float32)
        if HAS_SLOPES:
            slopes += tl.load(slopes_ptr + head)
        m_i = tl.full([TILE_Q], float("-inf"), tl.float32)
        l_i = tl.zeros([TILE_Q], tl.float32)
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + head) * log2e
            m_i = tl.zeros([TILE_Q], tl.float32) + sink
            l_i += tl.where(sink == float("-inf"), 0.0, 1.0)
        acc = tl.zeros([TILE_Q, TILE_D], tl.float32)
        q = q_desc.load([first_token, q_column])
        for tile in tl.range(start, end, TILE_KV, warp_specialize=True):
            k = k_desc.load([tile, k_column])
            products = product(
                q, tl.trans(k), tl.zeros([TILE_Q, TILE_KV], tl.float32), INTERPRET, "tf32"
            )
            offs_kv = tile + tl.arange(0, TILE_KV)
            factor = 1.0  # takes what is exponentiated to base 2, in the same step as the maximum
            if HAS_SOFTCAP or HAS_SLOPES:
                distance = position[:, None] - offs_kv[None, :]
                products = base2_scores(
                    products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES
                )
            else:
                factor = scale * log2e
            if CAUSAL:
                visible = offs_kv[None, :] <= position[:, None]
            else:
                visible = (offs_kv < key_len)[None, :]
            if HAS_WINDOW:
                visible = visible & (offs_kv[None, :] > (position - window)[:, None])
            products = tl.where(visible, products, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(products, 1) * factor)
            base = tl.where(m_new == float("-inf"), 0.0, m_new)
            weights = tl.exp2(products * factor - base[:, None])
            shrink = tl.exp2(m_i - base)
            l_i = l_i * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            m_i = m_new
            v = v_desc.load([tile, v_column])
            acc = product(weights.to(v.dtype), v, acc, INTERPRET, "tf32")

        output, lse = normalise(m_i, l_i, acc)
        out_rows = (q_start + token).to(tl.int64) * num_heads + head
        tl.store(
            output_ptr + out_rows[:, None] * HEAD_DIM + offs_d[None, :],
            output.to(output_ptr.dtype.element_ty),
            mask=mask_row[:, None] & (offs_d < HEAD_DIM)[None, :],
        )
        if HAS_LSE:
            tl.store(lse_ptr + out_rows, lse, mask=mask_row)
