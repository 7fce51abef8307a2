"""Host side of ``prefill`` in the form for Hopper: which calls it takes, workspace, launch."""

import contextvars
from collections.abc import Callable

import torch
from torch import Tensor

from blocks._launch import interpreted, launch
from blocks.attention import _arguments, _tiles
from blocks.attention._call import Call


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether tensor descriptors can reach these tensors: 16 bits an element, nothing empty, and
    addresses and strides of tokens and heads in multiples of 16 bytes. Every option is fine."""
    if query.itemsize != 2 or min(query.shape[0], key.shape[0]) == 0:
        return False
    unaligned = 0
    for tensor in (query, key, value):
        token, head, _ = tensor.stride()
        if token <= 0 or head <= 0:
            return False
        unaligned |= tensor.data_ptr() | 2 * token | 2 * head
    return unaligned % 16 == 0


def one_map(tensor: Tensor) -> bool:
    """Whether the heads of a token lie inside the token's stride, so that one descriptor of whole
    tokens reaches every head."""
    token, head, _ = tensor.stride()
    return tensor.shape[1] * head <= token


def prefill(
    call: Call,
    tiles: _tiles.Tiles,
    output: Tensor,
    lse: Tensor | None,
    *,
    causal: bool,
) -> None:
    """Fill ``output`` and ``lse``; for calls that ``takes`` allows."""
    from blocks.attention._triton.prefill_tma import _prefill_tma_kernel

    query, key, value, _, cu_seqlens_k, cu_seqlens_q, options, _ = call
    num_tokens, num_heads, head_dim = query.shape
    num_seqs = call.num_seqs
    persistent = num_seqs == 1 and _tiles.tma_persists(head_dim)
    persistent = persistent and one_map(query) and one_map(key) and one_map(value)
    num_blocks = -(-num_tokens // tiles.q) if persistent else num_tokens // tiles.q + num_seqs
    programs = num_blocks * num_heads
    if persistent:
        programs = min(programs, _tiles.num_processors(query.device))

    def run() -> None:
        launch(
            _prefill_tma_kernel,
            (programs,),
            (
                query,
                key,
                value,
                cu_seqlens_k,
                cu_seqlens_q,
                *options.per_head,
                output,
                lse,
            ),
            (
                num_seqs,
                num_tokens,
                num_heads,
                num_blocks,
                *query.stride()[:2],
                *key.stride()[:2],
                *value.stride()[:2],
                *_arguments.numbers(options),
            ),
            {
                "GROUP": call.group,
                "HEAD_DIM": head_dim,
                "TILE_Q": tiles.q,
                "TILE_KV": tiles.kv,
                "TILE_D": _tiles.power_of_two(head_dim),
                "CAUSAL": causal,
                "PERSISTENT": persistent,
                "HALVINGS": -(-num_seqs.bit_length() // 4) * 4,
                "HAS_WINDOW": options.window is not None,
                "HAS_SOFTCAP": options.softcap is not None,
                "HAS_SINKS": options.sinks is not None,
                "HAS_SLOPES": options.alibi_slopes is not None,
                "HAS_LSE": lse is not None,
                "INTERPRET": interpreted(),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )

    with_workspace(run, query.device)


def with_workspace(run: Callable[[], None], device: torch.device) -> None:
    """Run a launch that needs memory for its descriptors, without touching the allocator that the
    caller may have given to triton: it is set in a copy of the context."""
    import triton

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)  # aligned to 512 bytes

    def with_allocator() -> None:
        triton.set_allocator(allocate)
        run()

    contextvars.copy_context().run(with_allocator)
