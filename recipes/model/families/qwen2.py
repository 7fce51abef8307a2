"""Qwen2 and Qwen2.5: a Llama with biases on query, key and value.

Reference: Yang et al. 2024, Qwen2 Technical Report, 2.2.
"""

from typing import Any

from recipes.model.config import MAX_LAYERS, ModelConfig
from recipes.model.families import llama
from recipes.model.families._windows import FULL, SLIDING, read_layer_types, write_layer_types
from recipes.model.hf_fields import Fields

ARCHITECTURE = "Qwen2ForCausalLM"
PREFIX = "model."
pieces = llama.pieces


def read(fields: Fields) -> dict[str, Any]:
    return llama.read_shape(fields, absent_kv_heads=32) | {
        "qkv_bias": True,
        "windows": read_windows(fields),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    return llama.write_shape(config) | write_windows(config)


def read_windows(fields: Fields) -> tuple[int | None, ...]:
    """Windows on the layers from ``max_window_layers`` up, where they are switched on."""
    num_layers = fields.size("num_hidden_layers", limit=MAX_LAYERS)
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28) if window is not None else num_layers
    first = min(max(first, 0), num_layers)
    rule = [FULL] * first + [SLIDING] * (num_layers - first)
    return read_layer_types(fields, num_layers, window, rule)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys of ``read_windows``."""
    window = next((w for w in config.windows if w is not None), None)
    kinds = write_layer_types(config.windows, config.num_layers)
    if window is None:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": kinds.index(SLIDING),
        "layer_types": kinds,
    }
