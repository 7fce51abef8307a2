"""Mistral: a Llama whose layers all see a sliding window.

Reference: Jiang et al. 2023, Mistral 7B, 2.
"""

from typing import Any

from recipes.model.config import MAX_LAYERS, ModelConfig
from recipes.model.families import llama
from recipes.model.hf_fields import Fields

ARCHITECTURE = "MistralForCausalLM"
PREFIX = "model."
pieces = llama.pieces


def read(fields: Fields) -> dict[str, Any]:
    return llama.read_shape(fields, absent_kv_heads=8) | {
        "windows": read_window(fields, absent=4096)
    }


def write(config: ModelConfig) -> dict[str, Any]:
    return llama.write_shape(config) | write_window(config)


def read_window(fields: Fields, absent: int | None) -> tuple[int | None, ...]:
    """One window for all layers, or none."""
    window = fields.optional_integer("sliding_window", absent)
    return () if window is None else (window,) * fields.size("num_hidden_layers", limit=MAX_LAYERS)


def write_window(config: ModelConfig) -> dict[str, Any]:
    """The key of ``read_window``."""
    return {"sliding_window": config.windows[0] if config.windows else None}
