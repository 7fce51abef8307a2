"""Who writes what: one plan that all ranks share."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from blocks._checks import check
from recipes.model.tensor_file import NAMES
from recipes.model.write_tensors import Named
from recipes.train.checkpoint.checkpoint import Checkpoint
from recipes.train.checkpoint.index import key_in_file


def file_of(rank: int) -> str:
    """Name of the file a rank writes its tensors to."""
    return f"rank-{rank:05d}.safetensors"


class Planner(DefaultSavePlanner):
    """The planner of one rank; names are taken as they are and every value is a tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        for name, tensor in checkpoint.tensors.items():
            got = type(tensor).__name__
            check(isinstance(tensor, Tensor), name, "a tensor", got, "put it into state")
            known = ", ".join(str(dtype) for dtype in NAMES)
            check(tensor.dtype in NAMES, f"{name} dtype", f"one of {known}", tensor.dtype)
        self.set_up_planner(dict(checkpoint.tensors))


def local_plan(planner: Planner) -> SavePlan:
    """The pieces a rank has; empty ones (of a dimension shorter than its mesh) are left out."""
    plan = planner.create_local_plan()
    return dataclasses.replace(plan, items=[item for item in plan.items if _has_content(item)])


def global_plan(planner: Planner, plans: Sequence[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    """Every piece by exactly one rank, and what there will be on disk.

    Raises:
        ValueError: ranks disagree about a tensor, or its pieces overlap or do not cover it.
    """
    sizes: dict[str, tuple[Any, ...]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            assert item.tensor_data is not None, item
            name, data = item.index.fqn, item.tensor_data
            got = (list(data.size), data.properties.dtype, item.type)
            want = sizes.setdefault(name, got)
            hint = "a name stands for one tensor over all ranks"
            check(got == want, f"{name} on rank {rank}", want, got, hint)
    parts, metadata = planner.create_global_plan(list(plans))
    for name, stored in metadata.state_dict_metadata.items():
        covered = sum(math.prod(chunk.sizes) for chunk in getattr(stored, "chunks", ()))
        want = math.prod(getattr(stored, "size", ()))
        check(covered == want, f"{name} elements", want, covered, "a rank's piece is missing")
    return parts, metadata


def pieces_to_write(planner: Planner, plan: SavePlan) -> list[tuple[MetadataIndex, Named]]:
    """What a rank writes: each piece and the tensor that holds it, not copied."""
    found = []
    for item in plan.items:
        assert item.tensor_data is not None, item
        data = planner.resolve_data(item)
        assert isinstance(data, Tensor), item.index
        chunk, size = item.tensor_data.chunk, item.tensor_data.size
        key = key_in_file(item.index.fqn, tuple(chunk.offsets), tuple(chunk.sizes), size)
        found.append((item.index, Named(key, data.detach(), data.dtype)))
    return found


def _has_content(item: WriteItem) -> bool:
    """Whether a piece has elements, or is the whole of a tensor that has none."""
    assert item.tensor_data is not None, item
    return math.prod(item.tensor_data.chunk.sizes) > 0 or math.prod(item.tensor_data.size) == 0
