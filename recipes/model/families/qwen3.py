"""Qwen3: RMSNorm on each query and key head, no biases by default.

Reference: Yang et al. 2025, Qwen3 Technical Report, 2.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import ModelConfig
from recipes.model.families import llama, qwen2
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece

ARCHITECTURE = "Qwen3ForCausalLM"
PREFIX = "model."


def read(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return llama.read_shape(fields, absent_kv_heads=32) | {
        "head_dim": fields.size("head_dim", 128),
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": True,
        "windows": qwen2.read_windows(fields),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    shape = llama.write_shape(config) | qwen2.write_windows(config)
    return shape | {"attention_bias": config.qkv_bias}


def pieces(config: ModelConfig) -> Iterator[Piece]:
    yield from llama.pieces(config)
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}.self_attn", f"layers.{layer}.attention"
        yield Piece(f"{theirs}.q_norm.weight", f"{ours}.query_norm.weight")
        yield Piece(f"{theirs}.k_norm.weight", f"{ours}.key_norm.weight")
