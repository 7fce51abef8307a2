"""Small kernels with faults planted in their compile-time choices, to see the gate turn red."""

import triton
import triton.language as tl

from tests.aot import AotCase


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, steps, TILE: tl.constexpr, TILE_K: tl.constexpr):
    """One program: ``c = sum over steps of a @ b``, one TILE x TILE tile."""
    rows = tl.arange(0, TILE)
    depth = tl.arange(0, TILE_K)
    acc = tl.zeros([TILE, TILE], tl.float32)
    for step in tl.range(0, steps):
        k = step * TILE_K + depth
        a = tl.load(a_ptr + rows[:, None] * TILE_K * steps + k[None, :])
        b = tl.load(b_ptr + k[:, None] * TILE + rows[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + rows[:, None] * TILE + rows[None, :], acc)


def product(name: str, tile: int, tile_k: int, warps: int, stages: int, **fields) -> AotCase:
    return AotCase(
        name=name,
        kernel="tests.aot_planted:product_kernel",
        signature={"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "steps": "i32"},
        constexprs={"TILE": tile, "TILE_K": tile_k},
        aligned=("a_ptr", "b_ptr", "c_ptr", "steps"),
        num_warps=warps,
        num_stages=stages,
        **fields,
    )


CASES = [
    product("sound", 64, 32, 4, 3, claims={"sm_80": ("HMMA", "LDGSTS"), "gfx942": ("v_mfma",)}),
    product("spills", 128, 32, 1, 1),
    product("shared", 128, 128, 8, 5, targets=("sm_80", "sm_90")),
    product("claims", 64, 32, 4, 3, claims=("UTMALDG",)),
]
