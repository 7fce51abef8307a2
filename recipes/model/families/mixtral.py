"""Mixtral: a Mistral whose MLP is a choice of two among several experts.

Reference: Jiang et al. 2024, Mixtral of Experts, 2.1.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import ModelConfig
from recipes.model.families import llama, mistral
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece

ARCHITECTURE = "MixtralForCausalLM"
PREFIX = "model."


def read(fields: Fields) -> dict[str, Any]:
    return llama.read_shape(fields, default_theta=1e6, absent_kv_heads=8) | {
        "norm_eps": fields.number("rms_norm_eps", 1e-5),
        "windows": mistral.read_window(fields, absent=None),
        "num_experts": fields.size("num_local_experts", 8),
        "num_experts_per_token": fields.size("num_experts_per_tok", 2),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    return (
        llama.write_shape(config)
        | mistral.write_window(config)
        | {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_token,
        }
    )


def pieces(config: ModelConfig) -> Iterator[Piece]:
    yield from llama.frame_pieces()
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from llama.attention_pieces(config, theirs, ours)
        yield Piece(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        yield Piece(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
        yield from expert_pieces(config, f"{theirs}.block_sparse_moe", f"{ours}.mlp")


def expert_pieces(config: ModelConfig, theirs: str, ours: str) -> Iterator[Piece]:
    """Router and experts of one layer; w1 is the gate, w3 up, w2 down."""
    inner = config.intermediate_size
    yield Piece(f"{theirs}.gate.weight", f"{ours}.router.weight")
    for i in range(config.num_experts):
        expert = f"{theirs}.experts.{i}"
        yield Piece(f"{expert}.w1.weight", f"{ours}.gate_up", (0, inner), i)
        yield Piece(f"{expert}.w3.weight", f"{ours}.gate_up", (inner, 2 * inner), i)
        yield Piece(f"{expert}.w2.weight", f"{ours}.down", None, i)
