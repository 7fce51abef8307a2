"""A checkpoint as a Hugging Face folder, whatever layout it was written by."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from blocks._checks import check
from recipes.model import Decoder
from recipes.train.checkpoint import (
    StoredCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_latest,
)
from recipes.train.config import TrainConfig
from recipes.train.model import export_model, model_config
from recipes.train.tokenizer import tokenizer_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_checkpoint(checkpoint: Path, out: Path, *, dtype: str = "float32") -> Path:
    """Write ``config.json``, safetensors, tokenizer and chat template to ``out``.

    Args:
        checkpoint: the folder of one checkpoint, of a run, or of a run's checkpoints; of several
            the newest intact one is taken.
        dtype: of the weights in the folder; "float32" keeps every bit.

    Raises:
        ValueError: no checkpoint there, or not of this trainer.
        CheckpointDamaged: the one checkpoint named is damaged.
    """
    check(dtype in DTYPES, "dtype", " or ".join(DTYPES), repr(dtype))
    decoder, tokenizer = read_decoder(open_checkpoint(checkpoint))
    return export_model(decoder, tokenizer, out, dtype=DTYPES[dtype])


def open_checkpoint(folder: Path) -> StoredCheckpoint:
    """The checkpoint a path means: itself, or the newest intact one below it.

    Raises:
        ValueError: there is none.
        CheckpointDamaged: the one checkpoint named is damaged.
    """
    for root in (folder / "checkpoints", folder):
        if list_checkpoints(root):
            found = load_latest(root)
            check(found is not None, "checkpoint", "an intact one", f"damaged ones in {root}")
            assert found is not None, root
            return found
    check((folder / "MANIFEST").exists(), "checkpoint", "a checkpoint or a run's folder", folder)
    return load_checkpoint(folder)


def read_decoder(checkpoint: StoredCheckpoint) -> tuple[Decoder, Tokenizer]:
    """The model of a checkpoint, whole and in float32, and its tokenizer."""
    config = TrainConfig.from_json(checkpoint.state.get("config"))
    tokenizer = tokenizer_of(checkpoint.tensors["tokenizer"])
    decoder = Decoder(model_config(config, tokenizer))
    checkpoint.tensors.read_into(
        {f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    )
    return decoder, tokenizer
