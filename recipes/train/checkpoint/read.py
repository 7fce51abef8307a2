"""Reading tensors of a checkpoint into tensors of any layout."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import ReadItem

from blocks._checks import check, fail
from recipes.model.tensor_file import TensorFile
from recipes.train.checkpoint.index import Index, key_in_file, make_metadata


@torch.no_grad()
def read_into(folder: Path, index: Index, targets: Mapping[str, Tensor]) -> None:
    """Fill ``targets`` with the tensors of a checkpoint, whatever pieces these lie in.

    Raises:
        ValueError: a name, shape or dtype that is not that of the checkpoint.
    """
    for name, target in targets.items():
        if name not in index:
            raise fail("checkpoint tensors", f"{name} among them", f"{len(index)} others")
        stored = index[name]
        check(tuple(target.shape) == stored.shape, name, list(stored.shape), list(target.shape))
        check(target.dtype == stored.dtype, f"{name} dtype", stored.dtype, target.dtype)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    wanted = {name: index[name] for name in targets}
    planner.set_up_planner(dict(targets), make_metadata(wanted))
    pieces = {
        MetadataIndex(name, piece.offsets): (
            piece,
            key_in_file(name, piece.offsets, piece.shape, tensor.shape),
        )
        for name, tensor in wanted.items()
        for piece in tensor.pieces
    }
    per_file: dict[str, list[tuple[str, ReadItem]]] = defaultdict(list)
    for item in planner.create_local_plan().items:
        piece, key = pieces[item.storage_index]
        per_file[piece.file].append((key, item))
    for file_name, items in sorted(per_file.items()):
        with TensorFile(folder / file_name) as file:
            for key, item in items:
                _read(file, key, item, planner.resolve_tensor(item).detach())


def _read(file: TensorFile, key: str, item: ReadItem, out: Tensor) -> None:
    """Copy a box of a stored piece into ``out``; a piece wanted whole is read straight into it."""
    shape = file.entries[key].shape
    if tuple(item.lengths) == shape:
        file.read_into(key, out)
        return
    staged = torch.empty(shape, dtype=file.entries[key].dtype)
    file.read_into(key, staged)
    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        staged = staged.narrow(dim, start, length)
    out.copy_(staged)
