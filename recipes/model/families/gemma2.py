"""Gemma-2: norms before and after attention and MLP, softcaps, every other layer windowed.

Reference: Gemma Team 2024, Gemma 2: Improving Open Language Models at a Practical Size, 2.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import ModelConfig
from recipes.model.families import llama
from recipes.model.families._rope import read_rope
from recipes.model.families._windows import FULL, SLIDING, read_layer_types, write_layer_types
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece

ARCHITECTURE = "Gemma2ForCausalLM"
PREFIX = "model."
NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def read(fields: Fields) -> dict[str, Any]:
    fields.refuse("use_bidirectional_attention", "only causal attention is built")
    shape = llama.read_shape(fields, absent_kv_heads=4)
    num_layers = shape["num_layers"]
    window = fields.optional_integer("sliding_window", absent=4096)
    bias = fields.flag("attention_bias", False)
    scalar = fields.number("query_pre_attn_scalar", 256)
    if not scalar > 0:
        raise fields.wrong("query_pre_attn_scalar", "a positive number")
    activation = "hidden_activation" if fields.has("hidden_activation") else "hidden_act"
    return shape | {
        "head_dim": fields.size("head_dim", 256),
        "norm_order": "sandwich",
        "norm_offset": 1.0,
        "activation": fields.choice(activation, llama.ACTIVATIONS, "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "out_bias": bias,
        "rope": read_rope(fields),
        "query_scale": scalar**-0.5,
        "attention_softcap": fields.optional_number("attn_logit_softcapping", absent=50.0),
        "logit_softcap": fields.optional_number("final_logit_softcapping", absent=30.0),
        "windows": read_layer_types(
            fields, num_layers, window, [SLIDING, FULL] * (num_layers // 2 + 1)
        ),
        "embedding_scale": shape["hidden_size"] ** 0.5,
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    shape = llama.write_shape(config)
    scale = config.attention(0).scale
    return shape | {
        "hidden_activation": shape.pop("hidden_act"),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": next((w for w in config.windows if w is not None), None),
        "layer_types": write_layer_types(config.windows, config.num_layers),
    }


def pieces(config: ModelConfig) -> Iterator[Piece]:
    yield from llama.frame_pieces()
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from llama.attention_pieces(config, theirs, ours)
        yield from llama.mlp_pieces(config, theirs, ours)
        for name, norm in NORMS.items():
            yield Piece(f"{theirs}.{name}.weight", f"{ours}.{norm}.weight")
