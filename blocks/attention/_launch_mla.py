"""Host side of the latent attention kernel: tiles, splits, launch, merge."""

from typing import Any

import torch
from torch import Tensor

from blocks._checks import fail
from blocks._launch import launch
from blocks.attention import _arguments, _launch_merge, _tiles
from blocks.attention._layout import DTYPES
from blocks.attention._options import Options
from blocks.attention._scales import scale_kind
from blocks.attention._splits import FIXED_SPLIT, choose_num_splits, num_fixed_splits
from blocks.attention.output import AttentionOutput


def mla_tiles(name: str, num_heads: int, itemsize: int, quantised: bool = False) -> _tiles.Tiles:
    """Heads and keys of a tile.

    A tile keeps heads x latent sums in registers (64 x 512 is half of all there are), so wide tiles
    need eight warps; Hopper's wide product wants 64 rows. Quantised latents are unpacked in
    registers, which leaves room for fewer at a time.
    """
    if name == "cpu":
        return _tiles.Tiles(16, 32, 4, 1)
    few = num_heads <= 16
    if itemsize == 4:
        return _tiles.Tiles(16, 16, 4, 1)
    if name.startswith("gfx"):
        return _tiles.Tiles(16, 16, 4, 1) if few or quantised else _tiles.Tiles(32, 16, 8, 1)
    if name == "sm_90" and num_heads > 32:
        return _tiles.Tiles(64, 32, 8, 2 if quantised else 3)
    return _tiles.Tiles(16, 32, 4, 2) if few else _tiles.Tiles(32, 32, 8, 2)


def decode(
    query: Tensor,
    latent_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    options: Options,
    latent_scale: Tensor | None,
    *,
    latent_dim: int,
    num_splits: int | None,
    batch_invariant: bool,
    return_lse: bool,
) -> Any:
    """``mla_decode``: one launch over heads and splits, and one that merges the splits."""
    from blocks.attention._triton.mla import _mla_decode_kernel

    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"query dtype: expected one of {names}, got {query.dtype}")
    if latent_dim > 512:
        raise fail("latent_dim", "at most 512 with impl='triton'", latent_dim)
    chip = _tiles.chip(query.device)
    if chip.startswith("gfx") and latent_cache.dtype == torch.float8_e4m3fn:
        wanted = f"torch.int8 or {query.dtype} on {chip}"  # unpacking would spill registers
        raise TypeError(f"latent_cache dtype: expected {wanted}, got {latent_cache.dtype}")
    num_seqs, num_heads, row_dim = query.shape
    num_blocks, block_size, _ = latent_cache.shape
    query = query if query.stride(2) == 1 else query.contiguous()
    block_table = block_table if block_table.stride(1) == 1 else block_table.contiguous()
    tiles = mla_tiles(
        _tiles.chip(query.device), num_heads, query.itemsize, latent_cache.itemsize == 1
    )
    head_tiles = -(-num_heads // tiles.q)
    capacity = block_table.shape[1] * block_size
    if batch_invariant:
        num_splits = num_fixed_splits(capacity)
    elif num_splits is None:
        num_splits = choose_num_splits(
            num_seqs * head_tiles,
            capacity,
            _tiles.num_processors(query.device),
            rows=tiles.q,
            head_dim=latent_dim,
            kv_itemsize=latent_cache.itemsize,
        )
    shape = (num_splits, num_seqs, num_heads)
    partial = query.dtype if num_splits == 1 else torch.float32
    outputs = torch.empty((*shape, latent_dim), dtype=partial, device=query.device)
    lses = torch.empty(shape, dtype=torch.float32, device=query.device)
    if num_seqs:
        launch(
            _mla_decode_kernel,
            (num_seqs, head_tiles, num_splits),
            (
                query,
                _arguments.stored(latent_cache),
                block_table,
                seq_lens.contiguous(),
                latent_scale,
                options.sinks,
                options.alibi_slopes,
                outputs,
                lses,
            ),
            (
                num_seqs,
                num_heads,
                num_blocks,
                num_splits,
                FIXED_SPLIT,
                *query.stride()[:2],
                *latent_cache.stride()[:2],
                block_table.stride(0),
                *_arguments.numbers(options),
            ),
            {
                "LATENT_DIM": latent_dim,
                "ROPE_DIM": row_dim - latent_dim,
                "BLOCK_SIZE": block_size,
                "TILE_Q": tiles.q,
                "TILE_KV": tiles.kv,
                "TILE_L": _tiles.power_of_two(latent_dim),
                "TILE_R": _tiles.power_of_two(row_dim - latent_dim),
                "SCALE": scale_kind(latent_scale, latent_cache.unsqueeze(2)),
                "FIXED_SPLITS": batch_invariant,
                **_arguments.settings(query, options),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    if num_splits == 1:
        state = AttentionOutput(outputs[0], lses[0])
    else:
        state = _launch_merge.merge(outputs, lses, query.dtype)
    return state if return_lse else state.output
