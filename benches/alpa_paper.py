"""What Alpa published: its models, TFLOP/s per GPU of every method, and the plans it found.

Reference: Zheng et al., "Alpa: Automating Inter- and Intra-Operator Parallelism for Distributed
Deep Learning", OSDI 2022, tables 5 to 8 and figures 8 to 10; rows as in the reference results of
its artifact. Up to eight p3.16xlarge nodes: 8 V100 of 16 GB each, NVLink inside, 25 Gbit/s between.
"""

import dataclasses
from typing import Literal

Family = Literal["gpt", "moe", "wide_resnet"]
Method = Literal["manual", "intra", "inter", "auto"]
"""manual: Megatron for GPT, DeepSpeed for MoE, pipelines of data-parallel stages for Wide-ResNet;
intra, inter: only the one kind of parallelism; auto: both."""

OUT_OF_MEMORY = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the weak scaling experiments.

    num_gpus: it was run on. hidden: width, or base channels of a Wide-ResNet.
    num_experts: of every second layer's mixture; 0 for none.
    width_factor: by which a Wide-ResNet's bottlenecks are wider.
    group_size: tokens that are routed to experts together.
    """

    family: Family
    name: str
    num_gpus: int
    hidden: int
    num_layers: int
    num_heads: int = 0
    num_experts: int = 0
    width_factor: int = 0
    global_batch: int = 1024
    seq_len: int = 1024
    vocab_size: int = 51_200
    group_size: int = 2048

    @property
    def nodes(self) -> tuple[int, int]:
        """Nodes and GPUs of each."""
        return max(1, self.num_gpus // 8), min(8, self.num_gpus)


def _gpt(num_gpus: int, name: str, hidden: int, num_layers: int, num_heads: int) -> Model:
    return Model("gpt", name, num_gpus, hidden, num_layers, num_heads)


def _moe(num_gpus: int, name: str, hidden: int, num_layers: int, num_experts: int) -> Model:
    return Model("moe", name, num_gpus, hidden, num_layers, 16, num_experts, vocab_size=32_000)


def _resnet(num_gpus: int, name: str, num_layers: int, channels: int, factor: int) -> Model:
    batch = 1520 if name == "13B" else 1536
    return Model(
        "wide_resnet", name, num_gpus, channels, num_layers,
        width_factor=factor, global_batch=batch,
    )  # fmt: skip


MODELS: tuple[Model, ...] = (
    _gpt(1, "350M", 1024, 24, 16),
    _gpt(2, "760M", 1536, 24, 16),
    _gpt(4, "1.3B", 2048, 24, 32),
    _gpt(8, "2.6B", 2560, 32, 32),
    _gpt(16, "6.7B", 4096, 32, 32),
    _gpt(32, "15B", 5120, 48, 40),
    _gpt(64, "39B", 8192, 48, 64),
    _moe(1, "380M", 768, 8, 8),
    _moe(2, "690M", 768, 8, 16),
    _moe(4, "1.3B", 768, 16, 16),
    _moe(8, "2.4B", 1024, 16, 16),
    _moe(16, "10B", 1536, 16, 32),
    _moe(32, "27B", 2048, 16, 48),
    _moe(64, "70B", 2048, 32, 64),
    _resnet(1, "250M", 50, 160, 2),
    _resnet(2, "500M", 50, 224, 2),
    _resnet(4, "1B", 50, 320, 2),
    _resnet(8, "2B", 50, 448, 2),
    _resnet(16, "4B", 50, 640, 2),
    _resnet(32, "6.8B", 50, 320, 16),
    _resnet(64, "13B", 101, 320, 16),
)

_X = OUT_OF_MEMORY
TFLOPS: dict[Family, dict[Method, tuple[float | None, ...]]] = {
    "gpt": {
        "manual": (47.53, 55.53, 55.89, 50.44, 56.59, 58.24, 57.84),
        "intra": (46.20, 59.54, 58.36, 50.82, 48.42, 35.07, 2.11),
        "inter": (44.23, 57.94, 53.99, 56.57, 59.68, 49.80, 50.55),
        "auto": (45.07, 57.92, 58.21, 61.61, 60.0, 59.9, 57.0),
    },
    "moe": {
        "manual": (34.24, 33.11, 34.67, 40.01, 12.91, 3.82, _X),
        "intra": (45.46, 42.17, 41.13, 46.72, 22.91, 1.50, 0.22),
        "inter": (45.46, 40.75, 37.52, 39.80, 31.12, _X, _X),
        "auto": (45.46, 43.03, 39.92, 45.76, 45.36, 38.84, 36.55),
    },
    "wide_resnet": {
        "manual": (8.3, 8.24, 8.08, 7.72, 0.37, _X, _X),
        "intra": (8.37, 8.48, 8.15, 7.71, 4.72, 1.96, 0.70),
        "inter": (8.3, 8.46, 6.47, 5.46, 0.37, _X, _X),
        "auto": (8.3, 8.46, 8.16, 8.04, 6.76, 6.60, 5.3),
    },
}
"""TFLOP/s per GPU on 1, 2, 4, 8, 16, 32 and 64 GPUs; None where it ran out of memory."""

INTRA_TFLOPS: dict[Family, dict[str, tuple[float | None, ...]]] = {
    "gpt": {
        "auto": (68.7, 62.0, 66.4, 61.2),
        "data": (68.4, _X, _X, _X),
        "zero2": (68.6, 62.0, 66.4, _X),
        "zero3": (68.6, 52.3, 57.8, 53.2),
    },
    "wide_resnet": {
        "auto": (8.27, 7.90, 7.87, 8.00),
        "data": (8.28, 6.50, _X, _X),
        "zero2": (8.26, 7.58, 6.95, _X),
        "zero3": (8.26, 7.36, 7.06, 5.97),
    },
    "moe": {
        "auto": (45.5, 38.9, 42.6, 35.1),
        "data": (45.5, _X, _X, _X),
        "zero2": (45.4, 24.9, 26.5, _X),
        "zero3": (45.4, 20.8, 22.2, 10.4),
    },
}
"""The intra-operator ablation on one node: 1, 2, 4 and 8 GPUs, models of its own."""


@dataclasses.dataclass(frozen=True)
class FoundPlan:
    """A plan that Alpa found.

    layers: of every stage, out of the layers its clustering made; empty: as even as can be.
    submeshes: (nodes, GPUs of each) of every stage. meshes: (data, tensor) of every stage.
    """

    family: Family
    num_gpus: int
    num_microbatches: int
    submeshes: tuple[tuple[int, int], ...]
    meshes: tuple[tuple[int, int], ...]
    layers: tuple[int, ...] = ()


FOUND: tuple[FoundPlan, ...] = (
    FoundPlan("gpt", 2, 128, ((1, 1),) * 2, ((1, 1),) * 2),
    FoundPlan("gpt", 8, 128, ((1, 2), (1, 2), (1, 4)), ((2, 1), (2, 1), (4, 1)), (2, 2, 4)),
    FoundPlan("gpt", 16, 64, ((1, 8),) * 2, ((2, 4),) * 2),
    FoundPlan("gpt", 32, 128, ((1, 8),) * 4, ((2, 4),) * 4),
    FoundPlan("gpt", 64, 1024, ((1, 4),) * 16, ((1, 4),) * 16),
    FoundPlan("moe", 16, 16, ((1, 8),) * 2, ((8, 1),) * 2),
    FoundPlan("moe", 32, 128, ((1, 4),) * 8, ((4, 1),) * 8),
    FoundPlan("moe", 64, 64, ((1, 8),) * 8, ((8, 1),) * 8),
    FoundPlan("wide_resnet", 16, 32, ((1, 4), (1, 4), (1, 8)), ((4, 1), (4, 1), (8, 1)), (5, 4, 7)),
    FoundPlan("wide_resnet", 64, 38, ((1, 8),) * 8, ((8, 1), (1, 8)) * 4),
)
"""Those whose stages, meshes and microbatches are on record."""


COUNTED: dict[str, float] = {
    "380M": 1660.0,
    "690M": 1660.1,
    "1.3B": 3059.3,
    "2.4B": 5063.8,
    "10B": 10551.4,
    "1024 wide, 8 experts": 22.66,
    "1280 wide, 16 experts": 33.14,
    "1536 wide, 16 experts": 45.55,
    "1536 wide, 32 experts": 45.54,
}
"""TFLOP that a step of a mixture of experts counted for when the results were published: rate times
seconds of rows that have both. The formula of the code that is public counts up to 11 % fewer."""


def models(family: Family) -> tuple[Model, ...]:
    """Of one family, smallest first."""
    return tuple(model for model in MODELS if model.family == family)


def iteration_flops(model: Model) -> float:
    """Floating point operations of an iteration of a transformer, activations recomputed, as the
    artifact counts them.

    >>> f"{iteration_flops(models('gpt')[0]):.3e}"
    '3.285e+15'
    """
    tokens, hidden, length = model.global_batch * model.seq_len, model.hidden, model.seq_len
    head = 6 * tokens * hidden * model.vocab_size
    attention = tokens * (8 * hidden**2 + 4 * length * hidden)
    if model.family == "gpt":
        return 4 * model.num_layers * (attention + 16 * tokens * hidden**2) + head
    experts = 64 * tokens * hidden**2 + 2 * tokens * hidden * model.num_experts
    routing = 4 * tokens * model.group_size * (1 + 2 * hidden)
    pair = 2 * attention + 32 * tokens * hidden**2 + experts + routing
    return 2 * model.num_layers * pair + head
