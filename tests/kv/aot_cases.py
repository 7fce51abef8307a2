"""Kernels of blocks.kv to compile ahead of time, at the shapes of real models."""

from blocks.kv._rope_write import rope_write_tiles
from tests.aot import TARGETS, AotCase

SCALE_PLACES = ("block", "slot", "head")


def write_case(name: str, dtype: str, tile: int) -> AotCase:
    tensors = dict.fromkeys(("key_ptr", "value_ptr"), f"*{dtype}")
    caches = dict.fromkeys(("key_cache_ptr", "value_cache_ptr"), f"*{dtype}")
    strides = ("stride_key_token", "stride_value_token", "stride_block", "stride_slot")
    sizes = dict.fromkeys((*strides, "num_slots", "row_size"), "i32")
    return AotCase(
        name=name,
        kernel="blocks.kv._triton.write:write_kv_kernel",
        signature={**tensors, **caches, "slot_mapping_ptr": "*i64", **sizes},
        constexprs={"BLOCK_SIZE": 16, "TILE": tile},
        aligned=(*tensors, *caches, "slot_mapping_ptr", *strides, "row_size"),
        num_warps=tile // 512,
    )


def quantised_case(
    name: str, dtype: str, *, dim: int = 128, is_int8: bool, dynamic: bool, hardware: bool = False
) -> AotCase:
    tensors = dict.fromkeys(("key_ptr", "value_ptr"), f"*{dtype}")
    caches = dict.fromkeys(("key_cache_ptr", "value_cache_ptr"), "*u8")
    scales = dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "*fp32")
    strides = [f"stride_{name}_{of}" for name in ("key", "value") for of in ("token", "head")]
    strides += ["stride_block", "stride_slot"]
    of_scales = [f"stride_{n}_{of}" for n in ("k_scale", "v_scale") for of in SCALE_PLACES]
    sizes = dict.fromkeys((*strides, *of_scales, "num_slots", "num_heads", "head_dim"), "i32")
    return AotCase(
        name=name,
        kernel="blocks.kv._triton.write_quantised:write_quantised_kernel",
        signature={**tensors, **caches, **scales, "slot_mapping_ptr": "*i64", **sizes},
        constexprs={
            "BLOCK_SIZE": 16,
            "TILE_HEADS": 1024 // dim,
            "TILE_DIM": dim,
            "K_DYNAMIC": dynamic,
            "V_DYNAMIC": dynamic,
            "IS_INT8": is_int8,
            "HARDWARE": hardware,
        },
        aligned=(*tensors, *caches, *scales, "slot_mapping_ptr", *strides, "head_dim"),
        num_warps=4,
        targets=("sm_90",) if hardware else TARGETS,
    )


def rope_case(
    name: str,
    dtype: str,
    *,
    dim: int = 128,
    rotary: int = 128,
    normed: bool = True,
    interleaved: bool = False,
    fp8: bool = False,
    hardware: bool = False,
) -> AotCase:
    """Static sizes as `rope_write_tiles` picks them."""
    tiles, num_warps = rope_write_tiles(rotary // 2, dim)
    heads = ("query", "key", "value", "out")
    signature = dict.fromkeys((f"{name}_ptr" for name in heads), f"*{dtype}")
    strides = [f"stride_{name}_{of}" for name in heads for of in ("token", "head")]
    strides += ["stride_block", "stride_slot"]
    signature |= {"positions_ptr": "*i64", "cos_sin_ptr": "*fp32", "slot_mapping_ptr": "*i64"}
    norms, scales = ("query_norm_ptr", "key_norm_ptr"), ("k_scale_ptr", "v_scale_ptr")
    caches = ("key_cache_ptr", "value_cache_ptr")
    signature |= dict.fromkeys(norms, f"*{dtype}") if normed else {}
    signature |= dict.fromkeys(scales, "*fp32") if fp8 else {}
    signature |= dict.fromkeys(caches, "*u8" if fp8 else f"*{dtype}")
    aligned = (*signature, *strides, "half", "head_dim")
    of_scales = [f"stride_{n}_{of}" for n in ("k_scale", "v_scale") for of in SCALE_PLACES]
    sizes = ("num_slots", "num_heads", "num_kv_heads", "half", "head_dim")
    signature |= dict.fromkeys((*strides, *of_scales, *sizes), "i32")
    signature |= {"eps": "fp32", "weight_offset": "fp32"}
    return AotCase(
        name=name,
        kernel="blocks.kv._triton.rope_write:rope_write_kernel",
        signature=signature,
        constexprs={
            **({} if normed else dict.fromkeys(norms)),
            **({} if fp8 else dict.fromkeys(scales)),
            "BLOCK_SIZE": 16,
            "INTERLEAVED": interleaved,
            "ROUND_FIRST": True,
            "K_DYNAMIC": fp8,
            "V_DYNAMIC": fp8,
            "IS_INT8": False,
            "HARDWARE": hardware,
            **tiles,
        },
        aligned=aligned,
        num_warps=num_warps,
        targets=("sm_90",) if hardware else TARGETS,
    )


def copy_case(name: str, word: str, *, scales: bool = False, tile: int = 2048) -> AotCase:
    ends = ("source", "target")
    strides = [f"stride_{end}_{of}" for end in ends for of in ("plane", "block")]
    of_scales = [f"stride_{end}_scales_{of}" for end in ends for of in ("plane", "block")]
    signature = {
        **{f"{end}_ptr": f"*{word}" for end in ends},
        **dict.fromkeys(strides, "i64"),
        "num_words": "i32",
        "pairs_ptr": "*i64",
        "num_tiles": "i32",
    }
    if scales:
        signature |= {f"{end}_scales_ptr": "*i32" for end in ends}
    signature |= dict.fromkeys((*of_scales, "num_scales"), "i32")
    odd = ("num_tiles", "num_words") if word == "u8" else ("num_tiles",)
    aligned = [name for name in signature if name not in odd]
    none = {} if scales else {f"{end}_scales_ptr": None for end in ends}
    return AotCase(
        name=name,
        kernel="blocks.kv._triton.copy:copy_blocks_kernel",
        signature=signature,
        constexprs={**none, "TILE": tile},
        aligned=tuple(aligned),
    )


CASES = [
    write_case("write-bf16", "bf16", tile=1024),  # 8 heads of 128, and smaller
    write_case("write-bf16-wide", "bf16", tile=2048),
    write_case("write-fp32", "fp32", tile=1024),
    quantised_case("write-fp8-token", "bf16", is_int8=False, dynamic=True),
    quantised_case("write-fp8-token-sm90", "bf16", is_int8=False, dynamic=True, hardware=True),
    quantised_case("write-fp8-static", "fp16", is_int8=False, dynamic=False, dim=64),
    quantised_case("write-int8-token", "bf16", is_int8=True, dynamic=True),
    rope_case("rope-bf16", "bf16"),  # Qwen3
    rope_case("rope-bf16-fp8", "bf16", fp8=True),
    rope_case("rope-bf16-fp8-sm90", "bf16", fp8=True, hardware=True),
    rope_case("rope-partial", "fp16", dim=80, rotary=32, normed=False),  # Phi
    rope_case("rope-interleaved-fp8", "bf16", dim=256, rotary=64, interleaved=True, fp8=True),
    rope_case("rope-fp32", "fp32", dim=64, rotary=64, interleaved=True),
    copy_case("copy", "i32"),
    copy_case("copy-scales", "i32", scales=True),
    copy_case("copy-odd", "u8"),  # blocks of an odd number of bytes
]
