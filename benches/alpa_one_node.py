"""Alpa's ablation on one node: models of its own, one microbatch a step.

Reference: Zheng et al., "Alpa", 2022, section 8.2, and the results of its public artifact.
"""

from benches.alpa_paper import Family, Model
from benches.alpa_runs import Restriction, Run


def _gpt(num_gpus: int, hidden: int, num_heads: int) -> Model:
    name = f"{hidden} wide"
    return Model(
        "gpt", name, num_gpus, hidden, 8, num_heads, global_batch=8, vocab_size=25_600
    )  # fmt: skip


def _moe(num_gpus: int, hidden: int, num_heads: int, num_experts: int) -> Model:
    name = f"{hidden} wide, {num_experts} experts"
    sizes = (hidden, 8, num_heads, num_experts)
    return Model("moe", name, num_gpus, *sizes, global_batch=8, group_size=1024)


def _resnet(num_gpus: int, channels: int) -> Model:
    name = f"{channels} channels"
    return Model(
        "wide_resnet", name, num_gpus, channels, 50, width_factor=2, global_batch=32
    )  # fmt: skip


ONE_NODE_MODELS: dict[Family, tuple[Model, ...]] = {
    "gpt": (_gpt(1, 2048, 16), _gpt(2, 3072, 24), _gpt(4, 4096, 32), _gpt(8, 5760, 40)),
    "moe": (
        *(_moe(1, 1024, 32, 8), _moe(2, 1280, 40, 16)),
        *(_moe(4, 1536, 24, 16), _moe(8, 1536, 24, 32)),
    ),
    "wide_resnet": (_resnet(1, 160), _resnet(2, 224), _resnet(4, 320), _resnet(8, 448)),
}  # fmt: skip

_X = None
_Row = tuple[Restriction, tuple[int, int], float | None]
_ONE_NODE: dict[Family, tuple[tuple[_Row, ...], ...]] = {
    "gpt": (
        (("", (1, 1), 68.68),),
        (
            *(("", (2, 1), 61.99), ("", (1, 2), 57.83)),
            *(("data", (2, 1), _X), ("zero2", (2, 1), 61.95), ("zero3", (2, 1), 52.35)),
        ),
        (
            *(("", (4, 1), 66.44), ("", (2, 2), 49.49), ("", (1, 4), 64.56)),
            *(("data", (4, 1), _X), ("zero2", (4, 1), 66.41), ("zero3", (4, 1), 57.83)),
        ),
        (
            *(("", (8, 1), _X), ("", (4, 2), 47.85), ("", (2, 4), 55.23), ("", (1, 8), 61.19)),
            *(("data", (8, 1), _X), ("zero2", (8, 1), _X), ("zero3", (8, 1), 53.21)),
        ),
    ),
    "wide_resnet": (
        (("", (1, 1), 8.267),),
        (
            *(("", (2, 1), 7.896), ("data", (2, 1), 6.496)),
            *(("zero2", (2, 1), 7.577), ("zero3", (2, 1), 7.361)),
        ),
        (
            *(("", (4, 1), 7.871), ("", (2, 2), 6.435), ("data", (4, 1), _X)),
            *(("zero2", (4, 1), 6.950), ("zero3", (4, 1), 7.064)),
        ),
        (
            *(("", (8, 1), 8.000), ("", (4, 2), 5.893), ("", (2, 4), 6.732)),
            *(("data", (8, 1), _X), ("zero2", (8, 1), _X), ("zero3", (8, 1), 5.971)),
        ),
    ),
    "moe": (
        (("", (1, 1), 45.49),),
        (
            *(("", (2, 1), 38.89), ("data", (2, 1), _X)),
            *(("zero2", (2, 1), 24.90), ("zero3", (2, 1), 20.85)),
        ),
        (
            *(("", (4, 1), 42.61), ("data", (4, 1), _X)),
            *(("zero2", (4, 1), 26.49), ("zero3", (4, 1), 22.19)),
        ),
        (
            *(("", (8, 1), 35.10), ("data", (8, 1), _X)),
            *(("zero2", (8, 1), _X), ("zero3", (8, 1), 10.36)),
        ),
    ),
}


def one_node_runs(family: Family) -> tuple[Run, ...]:
    """The rows of the ablation on one node, one microbatch a step, on models of its own."""
    return tuple(
        Run(
            *(model, f"one node {restriction}".strip(), published, (1,), (mesh,)),
            recompute="" if family == "wide_resnet" else "blocks",
            restriction=restriction,
            forced=(family == "gpt",),
        )
        for model, rows in zip(ONE_NODE_MODELS[family], _ONE_NODE[family], strict=True)
        for restriction, mesh, published in rows
    )
