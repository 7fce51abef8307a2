"""Reading a Hugging Face folder into a decoder, and writing a decoder as such a folder."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from blocks._checks import fail
from recipes.model import families
from recipes.model.config import ModelConfig
from recipes.model.decoder import Decoder
from recipes.model.folder import find, open_folder, read_json, require, write_json
from recipes.model.pieces import Piece
from recipes.model.tensor_file import TensorFile
from recipes.model.write_tensors import Named, write_tensors

if TYPE_CHECKING:
    from recipes.model.tokenizer import Tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|^lm_head\.weight$")
"""Tensors of older checkpoints that are no weights, and the copy of tied embeddings."""


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of a folder: ``config.json`` and ``generation_config.json``.

    Raises:
        ValueError: missing or broken file, unknown family, missing key, value out of range.
    """
    folder = open_folder(folder)
    raw = read_json(require(folder, "config.json", "this is not a model folder"))
    generation = find(folder, "generation_config.json")
    return ModelConfig.from_hf(raw, read_json(generation) if generation else None)


def load_model(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    max_positions: int | None = None,
) -> Decoder:
    """Read a folder with ``config.json`` and one or several safetensors files.

    All names, shapes and dtypes are checked before memory is taken. Tensors are then read one by
    one into the parameters, so the peak is the model itself and 16 MiB.

    Args:
        dtype: dtype of the parameters; default the one named by the config.
        max_positions: longest sequence to be run; default what the model was made for.

    Raises:
        ValueError: anything missing, cut, of the wrong shape or dtype, or not of a known family.
    """
    folder = open_folder(folder)
    config = read_config(folder)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in weight_files(folder)]
        sources = match_weights(config, files)
        decoder = Decoder(config, dtype=dtype, device=device, max_positions=max_positions)
        parameters = dict(decoder.named_parameters())
        with torch.no_grad():
            for source in sources:
                source.file.read_into(source.name, part_of(parameters, source.piece))
    return decoder


def check_weights(folder: str | Path) -> None:
    """Check names, shapes and dtypes of a folder's tensors without reading them.

    Raises:
        ValueError: as ``load_model``.
    """
    folder = open_folder(folder)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in weight_files(folder)]
        match_weights(read_config(folder), files)


def save_model(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: "Tokenizer | None" = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that transformers and ``load_model`` read.

    Each file appears whole or not at all, the index last; weight files of an earlier model in the
    same folder are removed at the end. Needs memory for one tensor besides the model.

    Args:
        tokenizer: written beside the weights where given.
        dtype: dtype of the weights in the files; default that of the parameters.
        max_shard_bytes: several files and an index are written where one would be larger.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = decoder.config
    parameters = dict(decoder.named_parameters())
    kept = dtype or decoder.embed.weight.dtype
    name = str(kept).removeprefix("torch.")
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": name})
    write_json(folder / "generation_config.json", _generation(config))
    if tokenizer is not None:
        tokenizer.save(folder)
    tensors = [Named(p.name, part_of(parameters, p), kept) for p in families.pieces(config)]
    shards = list(_shards(tensors, max_shard_bytes))
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard)
    if len(shards) > 1:
        _write_index(folder, names, shards)
    _remove_stale(folder, {*names, INDEX} if len(shards) > 1 else set(names))


def part_of(parameters: Mapping[str, Tensor], piece: Piece) -> Tensor:
    """The view of a parameter that a piece names, in the folder's orientation."""
    part = parameters[piece.parameter]
    if piece.expert is not None:
        part = part[piece.expert]
    if piece.rows is not None:
        part = part[piece.rows[0] : piece.rows[1]]
    return part.T if piece.transposed else part


class Source(NamedTuple):
    """Where a piece lies: a file, and its name there."""

    piece: Piece
    file: TensorFile
    name: str


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the one, or those the index names."""
    if single := find(folder, SINGLE):
        return [single]
    index = find(folder, INDEX)
    if index is None:
        others = sorted(p.name for p in folder.glob("*.bin"))[:3]
        hint = f"{others} hold pickled code and are not read; " if others else ""
        require(folder, SINGLE, f"{hint}neither it nor {INDEX} is there")
        raise AssertionError
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise fail(f"{INDEX} weight_map", "an object of tensor names and files", repr(weight_map))
    names = list(weight_map.values())
    if not all(isinstance(name, str) for name in names):
        raise fail(f"{INDEX} weight_map", "file names as strings", "something else")
    return [require(folder, name, f"{INDEX} names it") for name in sorted(set(names))]


def match_weights(config: ModelConfig, files: list[TensorFile]) -> list[Source]:
    """A source for every piece, with shapes and dtypes checked; in the order they are stored."""
    there = _by_full_name(config, files)
    sources, missing = [], []
    for piece in families.pieces(config):
        if piece.name in there:
            sources.append(Source(piece, *there.pop(piece.name)))
        elif len(missing) < 4:
            missing.append(piece.name)
        else:
            break
    if missing:
        shown = ", ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")
        got = f"no tensor {shown}"
        raise fail("weights", f"all tensors of a {config.family} model", got, _hint(files))
    unexpected = [name for name in there if not BUFFERS.search(name)]
    if unexpected:
        got = f"{len(unexpected)} more, among them {unexpected[0][:200]}"
        hint = "config.json describes another model"
        raise fail("weights", f"only the {len(sources)} tensors of config.json", got, hint)
    shapes = dict(Decoder(config, device="meta").named_parameters())
    for source in sources:
        _check_tensor(source, tuple(part_of(shapes, source.piece).shape))
    return sorted(sources, key=lambda s: (s.file.name, s.file.entries[s.name].start))


def _by_full_name(
    config: ModelConfig, files: list[TensorFile]
) -> dict[str, tuple[TensorFile, str]]:
    """Tensors by the name they have in a full checkpoint; bare ones lack the prefix."""
    there: dict[str, tuple[TensorFile, str]] = {}
    for file, name in itertools.chain.from_iterable(((f, n) for n in f.entries) for f in files):
        if name in there:
            raise fail(
                f"tensor {name}", "one file holding it", f"{there[name][0].name} {file.name}"
            )
        there[name] = (file, name)
    prefix = families.prefix(config)
    if any(name.startswith(prefix) for name in there):
        return there
    return {n if n.startswith("lm_head.") else prefix + n: where for n, where in there.items()}


def _check_tensor(source: Source, shape: tuple[int, ...]) -> None:
    entry = source.file.entries[source.name]
    where = f"{source.file.name} tensor {source.name}"
    if entry.shape != shape:
        raise fail(f"{where} shape", list(shape), list(entry.shape), "as config.json says")
    if entry.dtype not in FLOATS:
        wanted = "float32, bfloat16, float16 or float64"
        raise fail(f"{where} dtype", wanted, entry.dtype, "quantized weights are not read")


def _hint(files: list[TensorFile]) -> str:
    return f"looked in {', '.join(f.name for f in files[:3])}"


def _generation(config: ModelConfig) -> dict[str, object]:
    stops = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": config.pad_token_id,
    }


def _shards(tensors: list[Named], limit: int) -> Iterator[list[Named]]:
    shard, size = [], 0
    for item in tensors:
        if shard and size + item.num_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += item.num_bytes
    yield shard


def _write_index(folder: Path, names: list[str], shards: list[list[Named]]) -> None:
    pairs = [(item, name) for name, shard in zip(names, shards, strict=True) for item in shard]
    total = sum(item.num_bytes for item, _ in pairs)
    weight_map = {item.name: name for item, name in pairs}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _remove_stale(folder: Path, keep: set[str]) -> None:
    for path in (*folder.glob("model*.safetensors"), folder / INDEX):
        if path.name not in keep:
            path.unlink(missing_ok=True)
