"""Kernels of blocks.kv to compile ahead of time, at the shapes of real models."""

from tests.aot import AotCase


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


def copy_case(name: str, dtype: str) -> AotCase:
    return AotCase(
        name=name,
        kernel="blocks.kv._triton.copy:copy_blocks_kernel",
        signature={
            "planes_ptr": f"*{dtype}",
            "stride_plane": "i64",
            "stride_block": "i32",
            "pairs_ptr": "*i64",
            "block_elements": "i32",
        },
        constexprs={"TILE": 2048},
        aligned=("planes_ptr", "stride_plane", "stride_block", "pairs_ptr", "block_elements"),
    )


CASES = [
    write_case("write-bf16", "bf16", tile=1024),  # 8 heads of 128, and smaller
    write_case("write-bf16-wide", "bf16", tile=2048),
    write_case("write-fp32", "fp32", tile=1024),
    copy_case("copy-bf16", "bf16"),
    copy_case("copy-fp32", "fp32"),
]
