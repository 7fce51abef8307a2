"""Ahead-of-time cases of the backward: the tiles its launchers choose for each chip."""

from typing import Any

from blocks.attention import _tiles
from blocks.attention._launch_backward import DELTA_ROWS
from blocks.attention._tiles_backward import backward_tiles
from tests.aot import TARGETS, AotCase

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
STRIDES = tuple(
    f"stride_{tensor}_{dim}" for tensor in ("do", "q", "k", "v") for dim in ("token", "head")
)
SUMS = tuple(f"stride_{tensor}_{dim}" for tensor in ("dk", "dv") for dim in ("token", "head"))
MATRIX = {"sm_80": ("HMMA", "LDGSTS"), "sm_90": ("HGMMA",), "gfx942": ("v_mfma",)}


def backward_case(
    which: str,
    target: str,
    head_dim: int,
    group: int,
    *,
    dtype: str = "bf16",
    options: bool = False,
    accumulate: bool = False,
    tiles: _tiles.Tiles | None = None,
) -> AotCase:
    """The kernel of one gradient as launched on ``target``; ``options`` turns every setting on."""
    tiles = tiles or backward_tiles(which, target, head_dim, group, BYTES[dtype], options)
    pointers = dict.fromkeys(("grad_output_ptr", "query_ptr", "key_ptr", "value_ptr"), f"*{dtype}")
    pointers |= {"lse_ptr": "*fp32", "delta_ptr": "*fp32"}
    pointers |= {"slopes_ptr": "*fp32"} if options else {}
    pointers |= {"cu_q_ptr": "*i32", "key_starts_ptr": "*i32", "key_ends_ptr": "*i32"}
    strides = STRIDES
    if which == "key":
        kept = "fp32" if accumulate else dtype
        pointers |= {"grad_key_ptr": f"*{kept}", "grad_value_ptr": f"*{kept}"}
        strides = (*STRIDES, *SUMS)
        constants = {"ACCUMULATE": accumulate}
    else:
        pointers |= {"grad_query_ptr": f"*{dtype}"}
        pointers |= {"grad_slopes_ptr": "*fp32"} if options else {}
        constants = {"WANT_SLOPES": options} | ({} if options else {"grad_slopes_ptr": None})
    counts = ("num_seqs", "num_heads", "num_kv_heads")
    numbers = dict.fromkeys((*counts, *strides), "i32")
    how = "-".join(n for n, on in (("options", options), ("sums", accumulate)) if on)
    return AotCase(
        name=f"backward-{which}-{dtype}-d{head_dim}-g{group}-{how or 'plain'}",
        kernel=f"blocks.attention._triton.backward_{which}:_backward_{which}_kernel",
        signature=pointers | numbers | {"scale": "fp32", "softcap": "fp32", "window": "i32"},
        constexprs={
            **({} if options else {"slopes_ptr": None}),
            **constants,
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_D": _tiles.power_of_two(head_dim),
            "CAUSAL": True,
            "HAS_WINDOW": options,
            "HAS_SOFTCAP": options,
            "HAS_SLOPES": options,
            "INTERPRET": False,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        },
        aligned=(*(p for p in pointers if p != "key_ends_ptr"), *strides),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(target,),
        claims=_claims(which, target, head_dim, dtype),
    )


def _claims(which: str, target: str, head_dim: int, dtype: str) -> tuple[str, ...]:
    """Matrix instructions; two sums of 256 columns leave no room for the 64 rows of wgmma."""
    if dtype == "fp32":
        return ()
    return ("HMMA",) if (which, target, head_dim) == ("key", "sm_90", 256) else MATRIX[target]


def delta_case(target: str) -> AotCase:
    """Delta with a gradient of the LSE."""
    pointers = {"grad_output_ptr": "*bf16", "output_ptr": "*bf16", "grad_lse_ptr": "*fp32"}
    numbers = ("num_rows", "num_heads", "stride_do_token", "stride_do_head")
    return AotCase(
        name="backward-delta-d128",
        kernel="blocks.attention._triton.backward:_delta_kernel",
        signature={**pointers, "delta_ptr": "*fp32", **dict.fromkeys(numbers, "i32")},
        constexprs={"HEAD_DIM": 128, "TILE_R": DELTA_ROWS, "TILE_D": 128, "HAS_GRAD_LSE": True},
        aligned=(*pointers, "delta_ptr", "stride_do_token", "stride_do_head"),
        num_warps=4,
        num_stages=1,
        targets=(target,),
    )


SHAPES: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (64, 4, {}),
    (128, 4, {}),
    (128, 1, {"options": True}),
    (256, 2, {"options": True}),
    (128, 4, {"dtype": "fp32"}),
)
CASES = [
    case
    for target in TARGETS
    for case in (
        *(
            backward_case(which, target, head_dim, group, **how)
            for which in ("query", "key")
            for head_dim, group, how in SHAPES
        ),
        backward_case("key", target, 128, 4, accumulate=True),
        delta_case(target),
    )
]
