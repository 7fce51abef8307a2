"""Ahead-of-time cases of training: losses over vocabularies in use, every term; the optimizer."""

import triton.language as tl

from blocks.ops._adamw_update import TILE as ADAMW_TILE
from blocks.ops._loss_rows import loss_tiles
from tests.aot import TARGETS, AotCase

LOSS = "blocks.ops._triton.cross_entropy:_loss_kernel"
NVIDIA = tuple(target for target in TARGETS if target.startswith("sm"))
AMD = tuple(target for target in TARGETS if not target.startswith("sm"))


def loss(
    name: str, vocab_size: int, dtype: str, *, terms: bool = False, grad: bool = True
) -> list[AotCase]:
    """One case for each kind of chip: they differ in the threads a program may have."""
    cases = []
    for targets, amd in ((NVIDIA, False), (AMD, True)):
        tile, num_warps = loss_tiles(vocab_size, terms=terms, amd=amd)
        rows = {"labels_ptr": "*i64", "losses_ptr": "*fp32", "lse_ptr": "*fp32"}
        signature = {"scores_ptr": dtype, "stride_scores_row": "i32", "stride_grad_row": "i32"}
        present = {"grad_ptr": dtype, "slopes_ptr": "*fp32"} if grad else {}
        absent = {} if grad else dict.fromkeys(("grad_ptr", "slopes_ptr"))
        numbers = {"vocab_size": "i32", "ignore_index": "i32"}
        settings = dict.fromkeys(("softcap", "z_loss", "label_smoothing"), "fp32")
        aligned = (*signature, *rows, *present, "vocab_size")
        cases.append(
            AotCase(
                name=name,
                kernel=LOSS,
                signature={**signature, **rows, **present, **numbers, **settings},
                constexprs={
                    **absent,
                    "CAPPED": terms,
                    "SMOOTHED": terms,
                    "TILE": tile,
                },
                aligned=aligned,
                num_warps=num_warps,
                targets=targets,
            )
        )
    return cases


def adamw(name: str, kernel: str, types: dict[str, object], signature: dict[str, str]) -> AotCase:
    table = {"table_ptr": "*i64", "owners_ptr": "*i32"}
    return AotCase(
        name=name,
        kernel=f"blocks.ops._triton.adamw:{kernel}",
        signature={**table, **signature},
        constexprs={**types, "ALIGNED": True, "TILE": ADAMW_TILE},
        aligned=(*table, *(key for key, kind in signature.items() if kind.startswith("*"))),
        num_warps=8,
        counted=True,
    )


NUMBERS = dict.fromkeys(
    ("weight_decay", "eps", "beta1_rest", "beta2_rest", "log2_beta1", "log2_beta2"), "fp32"
)
F32 = {"PARAM": tl.float32, "GRAD": tl.float32, "STATE": tl.float32}
BF16 = {"PARAM": tl.float32, "GRAD": tl.bfloat16, "STATE": tl.bfloat16}

CASES = [
    adamw(
        "adamw-fp32-graph",
        "_adamw_kernel",
        {**F32, "step": None, "LR_POINTER": True},
        {"factor_ptr": "*fp32", "lr": "*fp32", **NUMBERS},
    ),
    adamw(
        "adamw-bf16-states",
        "_adamw_kernel",
        {**BF16, "factor_ptr": None, "LR_POINTER": False},
        {"step": "fp32", "lr": "fp32", **NUMBERS},
    ),
    adamw("squares-bf16", "_squares_kernel", {"GRAD": tl.bfloat16}, {"partials_ptr": "*fp32"}),
    AotCase(
        name="clip",
        kernel="blocks.ops._triton.adamw:_clip_kernel",
        signature={
            **dict.fromkeys(("partials_ptr", "grad_scale_ptr", "norm_ptr", "factor_ptr"), "*fp32"),
            "num_partials": "i32",
            "max_norm": "fp32",
        },
        constexprs={"TILE": 1024},
        aligned=("partials_ptr",),
    ),
    *loss("loss-32k-bf16", 32_000, "*bf16"),
    *loss("loss-128k-bf16", 128_256, "*bf16"),
    *loss("loss-256k-bf16-terms", 256_000, "*bf16", terms=True),
    *loss("loss-128k-fp32-terms", 128_256, "*fp32", terms=True),
    *loss("loss-128k-bf16-no-grad", 128_256, "*bf16", grad=False),
    *loss("loss-512-bf16", 512, "*bf16"),
    AotCase(
        name="scale-bf16",
        kernel="blocks.ops._triton.cross_entropy:_scale_kernel",
        signature={"x_ptr": "*bf16", "factor_ptr": "*fp32", "num_elements": "i64"},
        constexprs={"TILE": 4096},
        aligned=("x_ptr", "factor_ptr", "num_elements"),
        num_warps=8,
    ),
]
