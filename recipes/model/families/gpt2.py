"""GPT-2: learned positions, LayerNorm, plain GELU MLP; its matrices are stored transposed.

Reference: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, 2.3.
"""

from collections.abc import Iterator
from typing import Any

from recipes.model.config import MAX_LAYERS, ModelConfig
from recipes.model.hf_fields import Fields
from recipes.model.pieces import Piece, linear

ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer."
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
NAMES = {"gelu_tanh": "gelu_new"}


def read(fields: Fields) -> dict[str, Any]:
    fields.refuse("add_cross_attention", "only decoders are built")
    hidden_size, num_heads = fields.size("n_embd"), fields.size("n_head")
    head_dim = hidden_size // num_heads
    return {
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("n_inner", 4 * hidden_size),
        "num_layers": fields.size("n_layer", limit=MAX_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": head_dim,
        "max_positions": fields.size("n_positions", 1024),
        "norm": "layer",
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "activation": fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "gated_mlp": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "rope": None,
        "query_scale": None if fields.flag("scale_attn_weights", True) else 1.0,
        "scale_by_layer": fields.flag("scale_attn_by_inverse_layer_idx", False),
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": NAMES.get(config.activation, config.activation),
        "scale_attn_weights": config.query_scale is None,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }


def pieces(config: ModelConfig) -> Iterator[Piece]:
    yield Piece("transformer.wte.weight", "embed.weight")
    yield Piece("transformer.wpe.weight", "positions.weight")
    yield from linear("transformer.ln_f", "final_norm", True)
    for layer in range(config.num_layers):
        theirs, ours = f"transformer.h.{layer}", f"layers.{layer}"
        yield from linear(f"{theirs}.ln_1", f"{ours}.attention_norm", True)
        yield from linear(f"{theirs}.ln_2", f"{ours}.mlp_norm", True)
        for name, part in (
            ("attn.c_attn", "attention.qkv"),
            ("attn.c_proj", "attention.out"),
            ("mlp.c_fc", "mlp.up"),
            ("mlp.c_proj", "mlp.down"),
        ):
            yield from linear(f"{theirs}.{name}", f"{ours}.{part}", True, transposed=True)
