"""Where each tensor of a Hugging Face folder lives in the decoder.

A family lists its pieces once; reading, writing and checking all walk the same list, so the two
directions cannot drift apart.
"""

import dataclasses
from collections.abc import Iterator

from recipes.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of a folder.

    name: its name in the safetensors files.
    parameter: the decoder parameter it is, or is a part of.
    rows: half-open range of rows of the parameter (of the expert's matrix where ``expert`` is
        given); None for all.
    expert: index into the first dimension of a stacked expert parameter.
    transposed: the folder holds the transpose (GPT-2).
    """

    name: str
    parameter: str
    rows: tuple[int, int] | None = None
    expert: int | None = None
    transposed: bool = False


def linear(theirs: str, ours: str, bias: bool, **where) -> Iterator[Piece]:
    """Weight of a linear layer, and its bias where it has one."""
    yield Piece(f"{theirs}.weight", f"{ours}.weight", **where)
    if bias:
        where.pop("transposed", None)
        yield Piece(f"{theirs}.bias", f"{ours}.bias", **where)


def query_key_value(
    config: ModelConfig, theirs: tuple[str, str, str], ours: str
) -> Iterator[Piece]:
    """Three projections of the folder as row ranges of one matrix."""
    start = 0
    for name, heads in zip(
        theirs, (config.num_heads, config.num_kv_heads, config.num_kv_heads), strict=True
    ):
        stop = start + heads * config.head_dim
        yield from linear(name, ours, config.qkv_bias, rows=(start, stop))
        start = stop


def gate_up(config: ModelConfig, gate: str, up: str, ours: str) -> Iterator[Piece]:
    """Gate and up projections as the two halves of one matrix."""
    inner = config.intermediate_size
    yield from linear(gate, ours, config.mlp_bias, rows=(0, inner))
    yield from linear(up, ours, config.mlp_bias, rows=(inner, 2 * inner))
