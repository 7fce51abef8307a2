"""Ahead-of-time cases of the losses: every length of vocabulary in use, every term."""

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


CASES = [
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
