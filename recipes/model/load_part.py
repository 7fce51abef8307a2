"""``load_part``: what one rank runs of a decoder, reading nothing else of the folder."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from blocks.sharding import Cut, Group
from recipes.model.decoder import rotary_table
from recipes.model.folder import open_folder
from recipes.model.part import DecoderPart
from recipes.model.pieces import Piece
from recipes.model.tensor_file import TensorFile
from recipes.model.tensor_parallel import tensor_parallel
from recipes.model.weights import Source, match_weights, part_of, read_config, weight_files


def load_part(
    folder: str | Path,
    layers: range,
    *,
    stage: int = 0,
    num_stages: int = 1,
    group: Group | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_positions: int | None = None,
) -> DecoderPart:
    """Read the layers of a stage, and of these what a rank of a tensor-parallel group holds.

    All names, shapes and dtypes of the folder are checked. Of a matrix cut by rows just these are
    read, of one cut by columns just the columns, page by page.

    Args:
        layers, stage, num_stages: of the pipeline, see ``DecoderPart``.
        group: ranks that share every layer, and the vocabulary; None for whole layers.
        dtype, device, max_positions: as for ``load_model``.

    Raises:
        ValueError: as ``load_model``; a group that does not divide the heads.
    """
    folder = open_folder(folder)
    config = read_config(folder)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in weight_files(folder)]
        sources = match_weights(config, files)
        part = DecoderPart(
            config, layers, stage=stage, num_stages=num_stages, dtype=dtype, device="meta"
        )
        cuts: dict[str, Cut] = {}
        if group is not None and group.size > 1:
            cuts = tensor_parallel(part, config, group, vocabulary=True)
        part.to_empty(device=device)
        limit = max_positions or config.max_positions
        part.register_buffer("cos_sin", rotary_table(config, limit, device), persistent=False)
        parameters = dict(part.named_parameters())
        rank = 0 if group is None else group.rank
        with torch.no_grad():
            for source in sources:
                for name in part.homes(source.piece.parameter):
                    _read(source, name, parameters, cuts.get(name), rank)
    return part.requires_grad_(False).eval()


def _read(
    source: Source, name: str, parameters: Mapping[str, Tensor], cut: Cut | None, rank: int
) -> None:
    """A piece, or this rank's runs of it, into the parameter of that name."""
    piece = dataclasses.replace(source.piece, parameter=name)
    if cut is None:
        source.file.read_into(source.name, part_of(parameters, piece))
        return
    local = parameters[name]
    if piece.expert is not None:
        local = local[piece.expert]
    dim = cut.dim - (piece.expert is not None)
    offset = 0
    for run in cut.runs[rank]:
        if dim == 0:
            first, stop = piece.rows or (0, cut.size)
            begin, end = max(run.start, first), min(run.stop, stop)
            if begin < end:
                out = local[offset + begin - run.start : offset + end - run.start]
                _read_run(source, piece, out, 0, begin - first)
        else:
            out = local if piece.rows is None else local[piece.rows[0] : piece.rows[1]]
            _read_run(source, piece, out.narrow(1, offset, run.size), 1, run.start)
        offset += run.size


def _read_run(source: Source, piece: Piece, out: Tensor, dim: int, start: int) -> None:
    if piece.transposed and out.ndim == 2:
        out, dim = out.T, 1 - dim
    source.file.read_run_into(source.name, out, dim, start)
