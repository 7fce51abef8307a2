"""OPT: learned positions that start at row 2, LayerNorm, ReLU.

The 350m model alone normalises after each sum and embeds in fewer dimensions than it computes in.

Reference: Zhang et al. 2022, OPT: Open Pre-trained Transformer Language Models, 2.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import MAX_LAYERS, ModelConfig
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece, linear, query_key_value

ARCHITECTURE = "OPTForCausalLM"
PREFIX = "model."
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
NAMES = {"gelu_tanh": "gelu_new"}
POSITION_OFFSET = 2


def read(fields: Fields) -> dict[str, Any]:
    if not fields.flag("layer_norm_elementwise_affine", True):
        raise fields.wrong("layer_norm_elementwise_affine", "true (norms with weights)")
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width = fields.size("word_embed_proj_dim", hidden_size)
    before, bias = fields.flag("do_layer_norm_before", True), fields.flag("enable_bias", True)
    return {
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("ffn_dim"),
        "num_layers": fields.size("num_hidden_layers", limit=MAX_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "max_positions": fields.size("max_position_embeddings"),
        "norm": "layer",
        "norm_order": "pre" if before else "post",
        "norm_eps": 1e-5,
        "final_norm": before and not fields.flag("_remove_final_layer_norm", False),
        "activation": fields.choice("activation_function", ACTIVATIONS, "relu"),
        "gated_mlp": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "rope": None,
        "position_offset": POSITION_OFFSET,
        "embedding_dim": None if width == hidden_size else width,
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    before = config.norm_order == "pre"
    return {
        "hidden_size": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "activation_function": NAMES.get(config.activation, config.activation),
        "enable_bias": config.qkv_bias,
        "word_embed_proj_dim": config.embedding_dim or config.hidden_size,
    }


def pieces(config: ModelConfig) -> Iterator[Piece]:
    frame = "model.decoder"
    yield Piece(f"{frame}.embed_tokens.weight", "embed.weight")
    yield Piece(f"{frame}.embed_positions.weight", "positions.weight")
    if config.embedding_dim is not None:
        yield Piece(f"{frame}.project_in.weight", "project_in.weight")
        yield Piece(f"{frame}.project_out.weight", "project_out.weight")
    if config.final_norm:
        yield from linear(f"{frame}.final_layer_norm", "final_norm", True)
    for layer in range(config.num_layers):
        theirs, ours = f"{frame}.layers.{layer}", f"layers.{layer}"
        query, key, value = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        yield from query_key_value(config, (query, key, value), f"{ours}.attention.qkv")
        yield from linear(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out", config.out_bias)
        yield from linear(f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm", True)
        yield from linear(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm", True)
        yield from linear(f"{theirs}.fc1", f"{ours}.mlp.up", config.mlp_bias)
        yield from linear(f"{theirs}.fc2", f"{ours}.mlp.down", config.mlp_bias)
