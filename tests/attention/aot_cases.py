"""Ahead-of-time cases: the tiles the launchers choose for each chip, at shapes of real models."""

import dataclasses

import torch

from blocks.attention import _launch_rows, _tiles
from tests.aot import TARGETS, AotCase

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CACHE = TORCH | {"fp8e4nv": torch.float8_e4m3fn, "i8": torch.int8}
STORED = {"fp8": ("fp8e4nv", "head"), "int8": ("i8", "token"), "same": ("", "none")}
"""Kind of cache to Triton's name of its elements, and the scales compiled with it."""
STRIDES = [
    "stride_k_block",
    "stride_k_slot",
    "stride_k_head",
    "stride_v_block",
    "stride_v_slot",
    "stride_v_head",
]
POINTERS = ("query_ptr", "key_ptr", "value_ptr", "table_ptr", "lens_ptr", "output_ptr", "lse_ptr")


def _stored(target: str, stored: str) -> str:
    """Element type of the cache as launched: float8 comes as bytes where a chip cannot convert."""
    return "u8" if stored == "fp8e4nv" and not _tiles.converts_float8(target) else stored


def _signature(
    dtype: str, stored: str, scale: str, tensors: dict[str, str], counts: list[str]
) -> dict[str, str]:
    pointers = {"query_ptr": f"*{dtype}", "key_ptr": f"*{stored}", "value_ptr": f"*{stored}"}
    pointers |= {"table_ptr": "*i32", "lens_ptr": "*i32"} | tensors
    if scale != "none":
        pointers |= {"k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    numbers = dict.fromkeys([*counts, *STRIDES, "stride_table"], "i32")
    return pointers | numbers | {"scale": "fp32", "softcap": "fp32", "window": "i32"}


def _settings(softcap: bool, window: bool, dtype: str, scale: str) -> dict[str, object]:
    names = ("k_scale_ptr", "v_scale_ptr") if scale == "none" else ()
    return dict.fromkeys(names) | {
        "K_SCALE": scale,
        "V_SCALE": scale,
        "HAS_WINDOW": window,
        "HAS_SOFTCAP": softcap,
        "HAS_SINKS": False,
        "HAS_SLOPES": False,
        "sinks_ptr": None,
        "slopes_ptr": None,
        "INTERPRET": False,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }


def attend_case(
    target: str,
    head_dim: int,
    group: int,
    *,
    paged: bool = True,
    dtype: str = "bf16",
    softcap: bool = False,
    window: bool = False,
    all_masked: bool = False,
    stored: str = "",
    scale: str = "none",
    tiles: _tiles.Tiles | None = None,
) -> AotCase:
    """``paged_extend``, or ``prefill`` when not ``paged``, as launched on ``target``."""
    operation = "extend" if paged else "prefill"
    if tiles is None:
        cache = CACHE[stored or dtype]
        tiles = _tiles.choose_tiles(
            "extend" if all_masked else operation,
            target,
            TORCH[dtype],
            head_dim,
            group,
            kv_dtype=cache,
            form="pointer",
        )
    outputs = {"cu_q_ptr": "*i32", "output_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
    counts = ["num_seqs", "num_heads", "num_blocks", "stride_q_token", "stride_q_head"]
    named = ((stored, stored), (scale, stored), ("softcap", softcap), ("window", window))
    options = "-".join(name for name, on in (*named, ("invariant", all_masked)) if on)
    return AotCase(
        name=f"{operation}-{dtype}-d{head_dim}-g{group}-{options or 'plain'}",
        kernel="blocks.attention._triton.attend:_attend_kernel",
        signature=_signature(dtype, _stored(target, stored or dtype), scale, outputs, counts),
        constexprs={
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": 16 if paged else 1,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_D": _tiles.power_of_two(head_dim),
            "PAGED": paged,
            "CAUSAL": True,
            "ALL_MASKED": all_masked,
            "HAS_LSE": True,
            **_settings(softcap, window, dtype, scale),
        },
        aligned=(*POINTERS, "cu_q_ptr", "stride_q_token", "stride_q_head", *STRIDES),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(target,),
    )


def decode_case(
    target: str,
    head_dim: int,
    group: int,
    *,
    dtype: str = "bf16",
    stored: str = "",
    scale: str = "none",
    tiles: _tiles.Tiles | None = None,
) -> AotCase:
    """``paged_decode`` as launched on ``target``, one split of several."""
    if tiles is None:
        cache = CACHE[stored or dtype]
        tiles = _tiles.choose_tiles("decode", target, TORCH[dtype], head_dim, group, kv_dtype=cache)
    outputs = {"output_ptr": "*fp32", "lse_ptr": "*fp32"}
    counts = ["num_seqs", "num_heads", "num_blocks", "num_splits", "split_len"]
    counts += ["stride_q_seq", "stride_q_head"]
    options = f"-{stored}-{scale}" if stored else ""
    return AotCase(
        name=f"decode-{dtype}-d{head_dim}-g{group}{options}",
        kernel="blocks.attention._triton.decode:_paged_decode_kernel",
        signature=_signature(dtype, _stored(target, stored or dtype), scale, outputs, counts),
        constexprs={
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": 16,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_D": _tiles.power_of_two(head_dim),
            "FIXED_SPLITS": False,
            "HAS_STARTS": False,
            "starts_ptr": None,
            **_settings(False, False, dtype, scale),
        },
        aligned=(*POINTERS, "stride_q_seq", "stride_q_head", *STRIDES),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(target,),
    )


def rows_case(
    target: str,
    head_dim: int,
    group: int,
    tokens: int,
    *,
    tree: bool = True,
    window: bool = False,
    stored: str = "",
    scale: str = "none",
) -> AotCase:
    """``tree_decode`` of ``tokens`` drafts; or so many sequences of one prefix."""
    quantised = stored != ""
    tiles = _launch_rows.rows_tiles(target, head_dim, group, tokens * group, 2, quantised)
    outputs = {"cu_q_ptr": "*i32", "output_ptr": "*fp32", "lse_ptr": "*fp32"}
    rows = {"tree_ptr": "*i64"} if tree else {"ends_ptr": "*i32"}
    counts = ["num_groups", "num_tokens", "num_heads", "num_blocks", "num_splits", "split_len"]
    counts += ["stride_q_token", "stride_q_head"]
    named = ((stored, stored), (scale, stored), ("window", window))
    options = "-".join(name for name, on in named if on)
    return AotCase(
        name=f"{'tree' if tree else 'prefix'}-d{head_dim}-g{group}-q{tokens}-{options or 'plain'}",
        kernel="blocks.attention._triton.rows:_rows_kernel",
        signature=_signature(
            "bf16", _stored(target, stored or "bf16"), scale, outputs | rows, counts
        ),
        constexprs={
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": 16,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_D": _tiles.power_of_two(head_dim),
            "FIXED_SPLITS": False,
            "HAS_STARTS": False,
            "starts_ptr": None,
            "TREE": tree,
            "ends_ptr" if tree else "tree_ptr": None,
            **_settings(False, window, "bf16", scale),
        },
        aligned=(*POINTERS, "cu_q_ptr", *rows, "stride_q_token", "stride_q_head", *STRIDES),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(target,),
    )


def tma_case(
    head_dim: int,
    group: int,
    *,
    dtype: str = "bf16",
    tiles: _tiles.Tiles | None = None,
    persistent: bool = False,
    options: bool = False,
    causal: bool = True,
) -> AotCase:
    """``prefill`` in the form for Hopper, one sequence of many or (``persistent``) the only one."""
    if tiles is None:
        tiles = _tiles.choose_tiles("prefill", "sm_90", TORCH[dtype], head_dim, group)
    assert tiles.form == "tma_ws"
    pointers = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "output_ptr"), f"*{dtype}")
    pointers |= {"cu_k_ptr": "*i32", "cu_q_ptr": "*i32", "lse_ptr": "*fp32"}
    if options:
        pointers |= {"sinks_ptr": "*fp32", "slopes_ptr": "*fp32"}
    strides = [f"stride_{t}_{axis}" for t in "qkv" for axis in ("token", "head")]
    counts = ["num_seqs", "num_tokens", "num_heads", "num_blocks", *strides, "window"]
    settings = _settings(options, options, dtype, "none")
    settings |= {"HAS_SINKS": options, "HAS_SLOPES": options}
    if options:
        del settings["sinks_ptr"], settings["slopes_ptr"]
    for name in ("PRECISION", "K_SCALE", "V_SCALE", "k_scale_ptr", "v_scale_ptr"):
        del settings[name]
    mode = "only" if persistent else "packed"
    shown = "options" if options else "plain" if causal else "full"
    return AotCase(
        name=f"prefill_tma-{dtype}-d{head_dim}-g{group}-{mode}-{shown}",
        kernel="blocks.attention._triton.prefill_tma:_prefill_tma_kernel",
        signature=pointers | dict.fromkeys(counts, "i32") | {"scale": "fp32", "softcap": "fp32"},
        constexprs={
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "TILE_Q": tiles.q,
            "TILE_KV": tiles.kv,
            "TILE_D": _tiles.power_of_two(head_dim),
            "CAUSAL": causal,
            "PERSISTENT": persistent,
            "HALVINGS": 4,
            "HAS_LSE": True,
            **settings,
        },
        aligned=(*pointers, *strides),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=("sm_90",),
        claims=("HGMMA", "UTMALDG", "USETMAXREG"),
    )


ONLY_ON = {"blocks.attention._triton.prefill_tma:_prefill_tma_kernel": ("sm_90",)}


def merge_case(target: str) -> AotCase:
    """Merging float32 states to bf16."""
    return AotCase(
        name="merge-d128",
        kernel="blocks.attention._triton.merge:_merge_states_kernel",
        signature={
            "outputs_ptr": "*fp32",
            "lses_ptr": "*fp32",
            "output_ptr": "*bf16",
            "lse_ptr": "*fp32",
            "num_states": "i32",
            "num_rows": "i32",
        },
        constexprs={"HEAD_DIM": 128, "TILE_D": 128, "TILE_S": _tiles.merge_states(128)},
        aligned=("outputs_ptr", "lses_ptr", "output_ptr", "lse_ptr"),
        num_warps=2,
        targets=(target,),
    )


def case(
    target: str,
    operation: str,
    head_dim: int,
    group: int,
    *,
    dtype: str = "bf16",
    kv_dtype: str = "same",
    tiles: _tiles.Tiles | None = None,
) -> AotCase:
    """The launch of ``operation`` on ``target``, with the table's tiles or with these."""
    stored, scale = STORED[kv_dtype]
    how = {"dtype": dtype, "stored": stored, "scale": scale, "tiles": tiles}
    if operation == "decode":
        return decode_case(target, head_dim, group, **how)
    if tiles is not None and tiles.form == "tma_ws":
        persistent = _tiles.tma_persists(head_dim)
        return tma_case(head_dim, group, dtype=dtype, tiles=tiles, persistent=persistent)
    return attend_case(target, head_dim, group, paged=operation == "extend", **how)


def table_cases(target: str) -> list[AotCase]:
    """Every row of the chip's table: at group 4, and some at the least and the largest group."""
    found = []
    for row in _tiles.table(target):
        ends = {row.group[0], 4, row.group[-1]}
        often = row.head_dim == 128 and row.dtype[0] != "fp32" and row.operation != "prefill"
        for group in sorted(ends) if often and row.kv_dtype == ("same",) else (4,):
            size = _tiles.BYTES[row.dtype[0]]
            tiles = _tiles.fit(row.tiles, target, row.head_dim, group, size)
            what = target, row.operation, row.head_dim, group
            for kv_dtype in row.kv_dtype:
                found.append(case(*what, dtype=row.dtype[0], kv_dtype=kv_dtype, tiles=tiles))
    return found


def _hopper_cases() -> list[AotCase]:
    """The other mode and the options of the form for Hopper."""
    return [
        tma_case(128, 4),
        tma_case(128, 4, causal=False),
        tma_case(128, 4, options=True),
        tma_case(128, 4, persistent=True, options=True),
    ]


COUNTED = ("prefill-bf16-d128-g4-plain", "extend-bf16-d128-g4-plain", "decode-bf16-d128-g4")
"""Cases whose instructions are counted."""

_ALL = [
    *(
        case
        for target in TARGETS
        for case in (
            *table_cases(target),
            attend_case(target, 256, 2, softcap=True, window=True),
            attend_case(target, 80, 1, paged=False),
            attend_case(target, 128, 4, all_masked=True),
            attend_case(target, 128, 4, paged=False, all_masked=True),
            decode_case(target, 256, 2),
            rows_case(target, 128, 4, 4),
            rows_case(target, 128, 4, 64, window=True),
            rows_case(target, 128, 4, 8, stored="fp8e4nv", scale="token"),
            rows_case(target, 256, 2, 16, stored="i8", scale="head"),
            rows_case(target, 128, 4, 64, tree=False),
            merge_case(target),
        )
    ),
    *_hopper_cases(),
]
CASES = [dataclasses.replace(case, counted=case.name in COUNTED) for case in _ALL]
