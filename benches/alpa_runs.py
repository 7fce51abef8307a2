"""How every published row of Alpa's was run: stages, meshes, microbatches, recomputation.

Reference: Zheng et al., "Alpa", 2022, and its public artifact: settings of the experiments, results
of the two ablations. Where a row is the best of several numbers of microbatches, all are here.
"""

import dataclasses
from typing import Literal

from benches.alpa_paper import TFLOPS, Family, Method, Model, models

Recompute = Literal["", "blocks", "layers"]
"""Whose forward pass is done again: nothing's; the blocks' of a transformer, which its code wraps;
that of all that layers were made of by clustering, the head among it."""

Restriction = Literal["", "data", "zero2", "zero3"]
"""What parameters may do: anything; lie whole with their state; whole but for gradients and state;
cut until they are read. The last three cut the batch alone."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A published row.

    method: restriction of the search it stands for, or ``one node`` for the ablation on it.
    published: TFLOP/s per GPU; None where it ran out of memory.
    counts: numbers of microbatches, of which the best one counts.
    meshes: (data, tensor) of every stage; a stage's devices are consecutive.
    shares: of every stage: blocks where a model's code marks the stages, or is a Wide-ResNet, else
        clusters of as many FLOPs; empty where as even as can be.
    batch: rows of a step where they are others than the model's.
    forced: for every stage whether the batch is cut along the first axis and nowhere else, as Alpa
        was told for GPT and for some stages of its plans; empty where for none.
    memory_bytes: of a GPU where it is another than that of the ranked rows.
    """

    model: Model
    method: str
    published: float | None
    counts: tuple[int, ...]
    meshes: tuple[tuple[int, int], ...]
    shares: tuple[int, ...] = ()
    recompute: Recompute = "blocks"
    restriction: Restriction = ""
    batch: int | None = None
    forced: tuple[bool, ...] = ()
    memory_bytes: int | None = None

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.batch or self.model.global_batch


Meshes = tuple[tuple[int, int], ...]

_INTRA: dict[Family, tuple[tuple[int, int, int], ...]] = {
    "gpt": ((1, 1, 64), (2, 1, 64), (4, 1, 64), (4, 2, 32), (2, 8, 64), (4, 8, 128), (2, 32, 512)),
    "moe": ((1, 1, 32), (2, 1, 32), (4, 1, 16), (8, 1, 16), (2, 8, 32), (1, 32, 32), (1, 64, 256)),
    "wide_resnet": (
        *((1, 1, 48), (2, 1, 32), (4, 1, 32), (8, 1, 48)),
        *((2, 8, 64), (4, 8, 48), (4, 16, 190)),
    ),
}
"""Mesh and number of microbatches of the one stage, for 1 to 64 GPUs. The largest were timed on a
few microbatches and scaled to the batch."""

_POWERS = (64, 128, 256, 512, 1024)
_INTER: dict[Family, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "gpt": tuple((num_gpus, _POWERS) for num_gpus in (1, 2, 4, 8, 16, 32, 64)),
    "moe": tuple((num_gpus, _POWERS[:4]) for num_gpus in (1, 2, 4, 8, 16, 32, 64)),
    "wide_resnet": (
        *((1, (24,)), (2, (24, 32, 48)), (4, (64,)), (8, (96,)), (16, (16,))),
        *((16, (32, 96, 384, 1536)), (33, (38, 95, 380, 1520))),
    ),
}
"""Stages of one device, and microbatches. Transformers whose blocks can be dealt evenly have as
many in every stage, marked in the model's code; other stages are as even as can be where nothing
else is on record."""

_INTER_SHARES: dict[tuple[Family, int], tuple[int, ...]] = {
    ("wide_resnet", 4): (6, 5, 3, 2),
    ("wide_resnet", 8): (3, 3, 2, 3, 2, 1, 1, 1),
}

_Auto = tuple[int, Meshes, tuple[int, ...]]
_AUTO: dict[Family, tuple[_Auto, ...]] = {
    "gpt": (
        (64, ((1, 1),), ()),
        (128, ((1, 1),) * 2, ()),
        (128, ((2, 1),) * 2, ()),
        (128, ((2, 1), (2, 1), (4, 1)), (2, 2, 4)),
        (64, ((2, 4),) * 2, ()),
        (128, ((2, 4),) * 4, ()),
        (1024, ((1, 4),) * 16, ()),
    ),
    "moe": (
        (32, ((1, 1),), ()),  # the very figure of the row without a pipeline, not a run of its own
        (32, ((2, 1),), ()),
        (32, ((2, 1),) * 2, ()),
        (32, ((4, 1),) * 2, ()),
        (16, ((8, 1),) * 2, ()),
        (128, ((4, 1),) * 8, ()),
        (64, ((8, 1),) * 8, ()),
    ),
    "wide_resnet": (
        (24, ((1, 1),), ()),
        (24, ((2, 1),), ()),
        (24, ((4, 1),), ()),
        (24, ((4, 1), (1, 4)), (8, 8)),
        (32, ((4, 1), (4, 1), (8, 1)), (5, 4, 7)),
        (32, ((8, 1),) * 4, (5, 4, 4, 3)),
        (38, ((8, 1), (1, 8)) * 4, ()),
    ),
}
"""The plans that Alpa found: microbatches, meshes and layers of the stages."""

_FORCED: dict[Family, dict[int, tuple[bool, ...]]] = {
    "gpt": {8: (True, False, False)},
    "moe": {1: (False,), 16: (False,) * 2, 32: (False,) * 8, 64: (False,) * 8},
    "wide_resnet": {
        **dict.fromkeys((1, 2, 4), (False,)),
        8: (False, True),
        16: (True, True, False),
        32: (True, False, False, False),
    },
}
"""By GPUs, the stages of Alpa's plans in which the batch had to be cut along the first axis; of GPT
all where nothing is said. None for those on 64, of which it is not on record."""

_WIDER = Model("wide_resnet", "13B", 64, 320, 50, width_factor=32, global_batch=1520)
"""What the 64 GPUs ran without a pipeline: as many parameters, in fewer and wider layers."""


def runs(family: Family) -> tuple[Run, ...]:
    """The rows of weak scaling of one family, by model and then by method."""
    found = []
    for at, model in enumerate(models(family)):
        published = {method: TFLOPS[family][method][at] for method in TFLOPS[family]}
        first, second, count = _INTRA[family][at]
        last = model.num_gpus == 64
        ran = _WIDER if last and family == "wide_resnet" else model
        found.append(
            Run(
                *(ran, "intra", published["intra"], (count,), ((first, second),)),
                recompute="" if family == "wide_resnet" else "blocks",
                forced=(family == "gpt" or (last and family == "moe"),),
            )
        )
        if family == "wide_resnet" and model.num_gpus == 2:
            found.append(_auto(model, at, "inter"))  # no run of its own: the plan's very figure
            found.append(_auto(model, at, "auto"))
            continue
        stages, counts = _INTER[family][at]
        shares = _INTER_SHARES.get((family, model.num_gpus), ())
        by_hand = family == "wide_resnet" and model.num_gpus == 16
        marked = family != "wide_resnet" and model.num_layers % stages == 0
        if marked:
            shares = (model.num_layers // stages,) * stages
        found.append(
            Run(
                *(model, "inter", published["inter"], counts, ((1, 1),) * stages, shares),
                recompute="blocks" if marked else "layers",
                batch=16 if by_hand else None,  # nothing larger fitted
            )
        )
        found.append(_auto(model, at, "auto"))
    return tuple(found)


def _auto(model: Model, at: int, method: Method) -> Run:
    """The plan that Alpa found for a model."""
    count, meshes, shares = _AUTO[model.family][at]
    published = TFLOPS[model.family][method][at]
    forced = _FORCED[model.family].get(model.num_gpus, (True,) * len(meshes))
    return Run(model, method, published, (count,), meshes, shares, "layers", forced=forced)
