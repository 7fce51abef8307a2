"""Ahead-of-time cases of latent attention: all of DeepSeek's heads, or one device's share."""

from blocks.attention._launch_mla import mla_tiles
from tests.aot import TARGETS, AotCase

STRIDES = ("stride_q_seq", "stride_q_head", "stride_block", "stride_slot")
COUNTS = ("num_seqs", "num_heads", "num_blocks", "num_splits", "split_len", "stride_table")
POINTERS = ("query_ptr", "cache_ptr", "table_ptr", "lens_ptr", "output_ptr", "lse_ptr")


def mla_case(
    target: str, num_heads: int, *, dtype: str = "bf16", kv: str = "", options: bool = False
) -> AotCase:
    """``mla_decode`` as launched on ``target``, one split of several."""
    tiles = mla_tiles(target, num_heads, 4 if dtype == "fp32" else 2, bool(kv))
    per_head = {"sinks_ptr": "*fp32", "slopes_ptr": "*fp32"} if options else {}
    pointers = {"query_ptr": f"*{dtype}", "cache_ptr": f"*{kv or dtype}", "table_ptr": "*i32"}
    pointers |= {"lens_ptr": "*i32", "output_ptr": "*fp32", "lse_ptr": "*fp32"} | per_head
    pointers |= {"scales_ptr": "*fp32"} if kv else {}
    numbers = dict.fromkeys([*COUNTS, *STRIDES, "window"], "i32")
    return AotCase(
        name=f"mla-{dtype}{kv and '-' + kv}-h{num_heads}-{'options' if options else 'plain'}",
        kernel="blocks.attention._triton.mla:_mla_decode_kernel",
        signature=pointers | numbers | {"scale": "fp32", "softcap": "fp32"},
        constexprs={
            **({} if options else {"sinks_ptr": None, "slopes_ptr": None}),
            **({} if kv else {"scales_ptr": None}),
            "LATENT_DIM": 512,
            "ROPE_DIM": 64,
            "BLOCK_SIZE": 64,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_L": 512,
            "TILE_R": 64,
            "SCALE": "token" if kv else "none",
            "FIXED_SPLITS": False,
            "HAS_WINDOW": options,
            "HAS_SOFTCAP": options,
            "HAS_SINKS": options,
            "HAS_SLOPES": options,
            "INTERPRET": False,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        aligned=(*POINTERS, *STRIDES),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(target,),
        claims={"sm_90": ("HGMMA", "LDGSTS")} if tiles.q >= 64 else (),
    )


CASES = [
    case
    for target in TARGETS
    for case in (
        mla_case(target, 128),
        mla_case(target, 128, options=True),
        mla_case(target, 32),
        mla_case(target, 16),
        mla_case(target, 16, dtype="fp32"),
        mla_case(target, 128, kv="i8"),
        mla_case(target, 16, kv={"sm_80": "u8", "sm_90": "fp8e4nv", "gfx942": "i8"}[target]),
    )
]
