"""Tensors of a checkpoint under the names of planned parameters, and back.

A planned decoder has query, key and value apart, and the gate from the up-projection; checkpoints
have them as the decoder does, in one matrix each (``recipes.plan.families.decoder_pieces``).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.model import Decoder, ModelConfig
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.families.decoder_pieces import decoder_pieces
from recipes.train.checkpoint import Box, Part


class Rows(NamedTuple):
    """Which rows of which tensor of the checkpoint, and of what shape that is."""

    key: str
    first: int
    stop: int
    shape: tuple[int, ...]


class Names:
    """From keys of planned tensors to those of the decoder's."""

    def __init__(self, model: ModelConfig) -> None:
        self.pieces = decoder_pieces(model)
        with torch.device("meta"):
            split, whole = TrainedDecoder(model), Decoder(model, device="meta")
        self._rows = {name: one.shape[0] for name, one in split.named_parameters()}
        self._whole = {name: tuple(one.shape) for name, one in whole.named_parameters()}

    def rows(self, key: str) -> Rows | None:
        """Of ``model.NAME`` or ``optimizer.NAME.MOMENT``; None for other tensors."""
        kind, _, name = key.partition(".")
        moment = ""
        if kind == "optimizer":
            name, _, moment = name.rpartition(".")
        if name not in self.pieces:
            return None
        whole, first = self.pieces[name]
        found = ".".join(filter(None, (kind, whole, moment)))
        return Rows(found, first, first + self._rows[name], self._whole[whole])


def join_tensors(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Parts of planned parameters and moments as parts of the decoder's."""
    names, found = Names(model), {}
    boxes: dict[str, list[Box]] = {}
    for key, tensor in tensors.items():
        rows = names.rows(key)
        if rows is None or not isinstance(tensor, Part):
            found[key if rows is None else rows.key] = tensor
            continue
        mine = boxes.setdefault(rows.key, [])
        for box in tensor.boxes:
            mine.append(Box((box.offsets[0] + rows.first, *box.offsets[1:]), box.values))
        found[rows.key] = Part.of(rows.shape, tensor.dtype, mine)
    return found


class SplitTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint as a planned run names them, each read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], model: ModelConfig) -> None:
        self._tensors, self._names = tensors, Names(model)
        moments = {key.rpartition(".")[2] for key in tensors if key.startswith("optimizer.")}
        every = [f"model.{name}" for name in self._names.pieces]
        every += [f"optimizer.{name}.{m}" for name in self._names.pieces for m in sorted(moments)]
        self._keys = [key for key in every if self._rows(key).key in tensors]

    def __getitem__(self, key: str) -> Tensor:
        rows = self._rows(key)
        tensor = self._tensors[rows.key]
        return tensor[rows.first : rows.stop] if tensor.dim() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def _rows(self, key: str) -> Rows:
        found = self._names.rows(key)
        if found is None:
            raise KeyError(key)
        return found
