"""Host side of the latent attention kernel: tiles, splits, launch, merge."""

from typing import Any

import torch
from torch import Tensor

from blocks._checks import fail
from blocks._launch import launch
from blocks.attention import _arguments, _launch_merge, _splits, _tiles
from blocks.attention._call import Call
from blocks.attention._scales import scale_kind
from blocks.attention._splits import FIXED_SPLIT


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
    call: Call,
    *,
    num_splits: int | None,
    batch_invariant: bool,
    return_lse: bool,
) -> Any:
    """``mla_decode``: one launch over heads and splits, and one that merges the splits.

    The only key head holds whole rows, and its values are their latents.
    """
    chip = _tiles.chip(call.query.device)
    _check(call, chip)
    num_seqs, num_heads, _ = call.query.shape
    tiles = mla_tiles(chip, num_heads, call.query.itemsize, call.key.itemsize == 1)
    if num_splits is None:
        programs = num_seqs * -(-num_heads // tiles.q)
        num_splits = _splits.num_splits(call, programs, tiles.q, batch_invariant)
    outputs, lses = _launch_merge.empty_states(call, num_splits, wide=num_splits > 1)
    if num_seqs:
        _launch(_arguments.readable(call), tiles, outputs, lses, batch_invariant)
    state = _launch_merge.merge_splits(outputs, lses, call.query.dtype)
    return state if return_lse else state.output


def _check(call: Call, chip: str) -> None:
    """Check what the kernel asks beyond ``mla_decode``."""
    _arguments.check_query(call.query)
    latent_dim = call.value.shape[-1]
    if latent_dim > 512:
        raise fail("latent_dim", "at most 512 with impl='triton'", latent_dim)
    if chip.startswith("gfx") and call.key.dtype == torch.float8_e4m3fn:
        wanted = f"torch.int8 or {call.query.dtype} on {chip}"  # unpacking would spill registers
        raise TypeError(f"latent_cache dtype: expected {wanted}, got {call.key.dtype}")


def _launch(
    call: Call, tiles: _tiles.Tiles, outputs: Tensor, lses: Tensor, batch_invariant: bool
) -> None:
    from blocks.attention._triton.mla import _mla_decode_kernel

    query, rows, _, block_table, seq_lens, _, options, scales = call
    num_splits, num_seqs, num_heads, latent_dim = outputs.shape
    num_blocks, block_size, _, row_dim = rows.shape
    counts = num_seqs, num_heads, num_blocks, num_splits, FIXED_SPLIT
    strides = *query.stride()[:2], *rows.stride()[:2], call.table.stride(0)
    launch(
        _mla_decode_kernel,
        (num_seqs, -(-num_heads // tiles.q), num_splits),
        (query, rows, block_table, seq_lens, scales.k, *options.per_head, outputs, lses),
        (*counts, *strides, *_arguments.numbers(options)),
        {
            "LATENT_DIM": latent_dim,
            "ROPE_DIM": row_dim - latent_dim,
            "BLOCK_SIZE": block_size,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_L": _tiles.power_of_two(latent_dim),
            "TILE_R": _tiles.power_of_two(row_dim - latent_dim),
            "SCALE": scale_kind(scales.k, rows),
            "FIXED_SPLITS": batch_invariant,
            **_arguments.settings(query, options),
        },
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
