"""Ahead-of-time cases: the tiles the launchers choose for each chip, at shapes of real models."""

from blocks.attention import _launch_rows, _tiles
from tests.aot import TARGETS, AotCase

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
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
    stored: str = "",
    scale: str = "none",
    tiles: _tiles.Tiles | None = None,
) -> AotCase:
    """``paged_extend``, or ``prefill`` when not ``paged``, as launched on ``target``."""
    tiles = tiles or _tiles.attend_tiles(target, head_dim, group, BYTES[dtype], stored != "")
    outputs = {"cu_q_ptr": "*i32", "output_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
    counts = ["num_seqs", "num_heads", "num_blocks", "stride_q_token", "stride_q_head"]
    named = ((stored, stored), (scale, stored), ("softcap", softcap), ("window", window))
    options = "-".join(name for name, on in named if on)
    operation = "extend" if paged else "prefill"
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
) -> AotCase:
    """``paged_decode`` as launched on ``target``, one split of several."""
    tiles = _tiles.decode_tiles(target, head_dim, group, BYTES[dtype], stored != "")
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


CASES = [
    case
    for target in TARGETS
    for case in (
        attend_case(target, 64, 4),
        attend_case(target, 128, 4),
        attend_case(target, 128, 4, paged=False),
        attend_case(target, 256, 2, softcap=True, window=True),
        attend_case(target, 80, 1, paged=False),
        attend_case(target, 128, 4, dtype="fp32"),
        decode_case(target, 64, 4),
        decode_case(target, 128, 4),
        decode_case(target, 256, 2),
        decode_case(target, 128, 4, stored="fp8e4nv", scale="head"),
        decode_case(target, 128, 4, stored="i8", scale="token"),
        attend_case(target, 128, 4, stored="fp8e4nv", scale="head"),
        attend_case(target, 128, 4, stored="i8", scale="token"),
        rows_case(target, 128, 4, 4),
        rows_case(target, 128, 4, 64, window=True),
        rows_case(target, 128, 4, 8, stored="fp8e4nv", scale="token"),
        rows_case(target, 256, 2, 16, stored="i8", scale="head"),
        rows_case(target, 128, 4, 64, tree=False),
        merge_case(target),
    )
]
