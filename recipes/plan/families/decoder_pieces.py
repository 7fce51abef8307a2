"""Where the parameters of ``TrainedDecoder`` lie in those of ``recipes.model.Decoder``."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.model import ModelConfig
from recipes.plan.families.decoder import TrainedDecoder


class Piece(NamedTuple):
    """Where a parameter of ``TrainedDecoder`` lies in the decoder's own.

    name: of the decoder's parameter.
    first_row: in it.
    """

    name: str
    first_row: int


def decoder_pieces(config: ModelConfig) -> dict[str, Piece]:
    """Of every parameter of ``TrainedDecoder``, where it lies in the decoder's.

    >>> from recipes.plan.families.decoder_sizes import decoder_config
    >>> pieces = decoder_pieces(decoder_config("tiny"))
    >>> pieces["layers.1.attention.value.weight"]
    Piece(name='layers.1.attention.qkv.weight', first_row=48)
    """
    with torch.device("meta"):
        named = dict(TrainedDecoder(config).named_parameters())
    rows = {"query": config.num_heads, "key": config.num_kv_heads, "value": config.num_kv_heads}
    rows = {part: heads * config.head_dim for part, heads in rows.items()}
    first_rows = {
        "attention": dict(zip(rows, (0, rows["query"], rows["query"] + rows["key"]), strict=True)),
        "mlp": {"gate": 0, "up": config.intermediate_size} if config.gated_mlp else {},
    }
    joined = {"attention": "qkv", "mlp": "gate_up"}
    found = {}
    for name in named:
        parts = name.split(".")
        first = None
        if len(parts) == 5:
            _, _, owner, part, _ = parts
            first = first_rows.get(owner, {}).get(part)
        if first is None:
            found[name] = Piece(name, 0)
        else:
            parts[3] = joined[parts[2]]
            found[name] = Piece(".".join(parts), first)
    return found


def split_state(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The parameters of ``TrainedDecoder``, views into those of the decoder."""
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in TrainedDecoder(config).named_parameters()}
    return {
        name: state[piece.name].narrow(0, piece.first_row, shapes[name][0])
        for name, piece in decoder_pieces(config).items()
    }
