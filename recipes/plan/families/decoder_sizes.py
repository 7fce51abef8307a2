"""The decoders that ``recipes.train`` makes, by size; any other by its fields or its folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from blocks._checks import check
from recipes import settings
from recipes.model import ModelConfig, read_config


def _size(layers: int, width: int, heads: int, kv_heads: int, inner: int, **more: int | bool):
    """A Llama of the trainer's kind."""
    sizes = {"vocab_size": 4096, "max_positions": 2048, "tie_embeddings": True, **more}
    return ModelConfig(
        family="llama",
        hidden_size=width,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        norm_eps=1e-5,
        **sizes,  # pyright: ignore[reportArgumentType]
    )


DECODERS: Mapping[str, ModelConfig] = {
    "tiny": _size(2, 32, 2, 1, 64, vocab_size=512, max_positions=64),
    "demo": _size(3, 192, 4, 2, 512, vocab_size=2048, max_positions=256),
    "bundled": _size(4, 256, 4, 2, 688, max_positions=512),
    "depth24": _size(24, 1536, 24, 12, 4096),
    "depth48": _size(48, 3072, 48, 24, 8192),
}
"""Presets of ``recipes.train``, and what its dial ``depth`` makes."""


def decoder_size(config: ModelConfig) -> str:
    """The text that ``decoder_config`` makes such a Llama from.

    >>> decoder_size(decoder_config("demo,num_layers=5"))[:40]
    'tiny,vocab_size=2048,hidden_size=192,int'
    """
    base = DECODERS["tiny"]
    named = [field.name for field in dataclasses.fields(config) if field.name in _SIZES]
    changed = [name for name in named if getattr(config, name) != getattr(base, name)]
    return ",".join(["tiny", *(f"{name}={getattr(config, name)}" for name in changed)])


_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "max_positions", "norm_eps", "tie_embeddings"),
)
"""What tells one of the trainer's decoders from another."""


def decoder_config(size: str) -> ModelConfig:
    """A size, a size with other fields, or the folder of a model.

    >>> decoder_config("tiny,num_layers=4,hidden_size=64").head_dim
    32

    Args:
        size: ``bundled``, ``tiny,num_layers=4`` or a folder with a ``config.json``; fields are
            those of ``ModelConfig``.

    Raises:
        ValueError: none of these.
    """
    name, *changes = size.split(",")
    if name in DECODERS:
        config = DECODERS[name]
    else:
        hint = "or the folder of a model"
        found = (Path(name) / "config.json").is_file()
        check(found, "decoder", f"one of {', '.join(DECODERS)}", repr(name), hint)
        config = read_config(name)
    if not changes:
        return config
    changed = settings.override(config, changes, see="recipes/model/config.py")
    if any(text.startswith("head_dim=") for text in changes):
        return changed
    if (changed.hidden_size, changed.num_heads) == (config.hidden_size, config.num_heads):
        return changed
    return dataclasses.replace(changed, head_dim=changed.hidden_size // changed.num_heads)
