"""Llama 2 and 3: pre-norm RMSNorm, rotary positions, grouped queries, SwiGLU.

Reference: Touvron et al. 2023, Llama 2; Grattafiori et al. 2024, The Llama 3 Herd of Models.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import MAX_LAYERS, ModelConfig
from recipes.model.families._rope import read_rope, write_rope
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece, gate_up, linear, query_key_value

ARCHITECTURE = "LlamaForCausalLM"
PREFIX = "model."
ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return read_shape(fields) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return write_shape(config) | biases


def pieces(config: ModelConfig) -> Iterator[Piece]:
    yield from frame_pieces()
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from attention_pieces(config, theirs, ours)
        yield Piece(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        yield Piece(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
        yield from mlp_pieces(config, theirs, ours)


def read_shape(
    fields: Fields, default_theta: float = 10000.0, absent_kv_heads: int | None = None
) -> dict[str, Any]:
    """What every relative of Llama has: sizes, rotary settings, norm.

    ``absent_kv_heads`` is what the family has where the file does not say; None for one a head.
    """
    num_heads = fields.size("num_attention_heads")
    hidden_size = fields.size("hidden_size")
    said = "num_key_value_heads" in fields.raw
    return {
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("intermediate_size"),
        "num_layers": fields.size("num_hidden_layers", limit=MAX_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": fields.size(
            "num_key_value_heads", num_heads if said else absent_kv_heads or num_heads
        ),
        "head_dim": fields.size("head_dim", hidden_size // num_heads),
        "max_positions": fields.size("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.choice("hidden_act", ACTIVATIONS, "silu"),
        "rope": read_rope(fields, default_theta),
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
    }


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """The keys of ``read_shape``."""
    assert config.rope is not None
    names = {"gelu_tanh": "gelu_pytorch_tanh"}
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": names.get(config.activation, config.activation),
        **write_rope(config.rope),
    }


def frame_pieces() -> Iterator[Piece]:
    """Embeddings and final norm."""
    yield Piece("model.embed_tokens.weight", "embed.weight")
    yield Piece("model.norm.weight", "final_norm.weight")


def attention_pieces(config: ModelConfig, theirs: str, ours: str) -> Iterator[Piece]:
    """The four projections of one layer."""
    query, key, value, out = (f"{theirs}.self_attn.{name}_proj" for name in "qkvo")
    yield from query_key_value(config, (query, key, value), f"{ours}.attention.qkv")
    yield from linear(out, f"{ours}.attention.out", config.out_bias)


def mlp_pieces(config: ModelConfig, theirs: str, ours: str) -> Iterator[Piece]:
    """The three projections of one layer's gated MLP."""
    gate, up, down = (f"{theirs}.mlp.{name}_proj" for name in ("gate", "up", "down"))
    yield from gate_up(config, gate, up, f"{ours}.mlp.gate_up")
    yield from linear(down, f"{ours}.mlp.down", config.mlp_bias)
