"""The decoder families: one file each, holding the config map and the weight map.

A family is a module with ``read(fields) -> dict`` (keyword arguments of ModelConfig that differ
from a plain Llama's or come from the file), ``write(config) -> dict`` (the family's own keys of
``config.json``), ``pieces(config)`` (every weight), ``PREFIX`` (what stands before all weight
names of a full checkpoint but not of a bare one) and ``ARCHITECTURE`` (the transformers class).
"""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from blocks._checks import fail
from recipes.model.config import ModelConfig
from recipes.model.families import gemma2, gpt2, llama, mistral, mixtral, opt, qwen2, qwen3
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece

FAMILIES: dict[str, ModuleType] = {
    "gemma2": gemma2,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "opt": opt,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def read_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None) -> ModelConfig:
    """A ModelConfig from the parsed ``config.json`` and ``generation_config.json``."""
    fields = Fields(raw)
    name = fields.text("model_type")
    if name not in FAMILIES:
        raise fail(
            "config.json model_type", f"one of {sorted(FAMILIES)}", repr(name)[:80],
            "this family is not built",
        )  # fmt: skip
    fields.refuse("quantization_config", "quantized checkpoints are not read")
    started = Fields(generation or {}, "generation_config.json")
    stops = started.token_ids("eos_token_id") or fields.token_ids("eos_token_id")
    return ModelConfig(
        family=name,
        vocab_size=fields.size("vocab_size"),
        bos_token_id=fields.optional_integer("bos_token_id"),
        eos_token_ids=stops,
        pad_token_id=fields.optional_integer("pad_token_id"),
        dtype=_dtype(fields),
        **FAMILIES[name].read(fields),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a model."""
    family = FAMILIES[config.family]
    stops = list(config.eos_token_ids)
    return {
        "architectures": [family.ARCHITECTURE],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": config.dtype,
        "tie_word_embeddings": config.tie_embeddings,
        **family.write(config),
    }


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Every tensor a folder of this model holds; tied embeddings once."""
    yield from FAMILIES[config.family].pieces(config)
    if not config.tie_embeddings:
        yield Piece("lm_head.weight", "head.weight")


def prefix(config: ModelConfig) -> str:
    """What stands before the weight names of a full checkpoint and may be missing."""
    return FAMILIES[config.family].PREFIX


def _dtype(fields: Fields) -> Any:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    known = {name: name for name in ("float32", "bfloat16", "float16")}
    return fields.choice(key, known, "float32")
