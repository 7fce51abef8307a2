"""Configurations of transformers models, and the inputs they take."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from blocks._checks import fail


def model(class_name: str, **fields: Any) -> Callable[[], nn.Module]:
    """A function that makes a transformers model from the fields of its configuration.

    Caches are off and nothing is dropped out.

    Raises:
        ValueError: transformers is not installed.
    """

    def make() -> nn.Module:
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise fail("family", "transformers", "none", "pip install -e '.[hf]'") from error
        made = getattr(transformers, class_name)
        config = made.config_class(**{"use_cache": False, **fields})
        built = made(config)
        if getattr(built, "loss_type", "") is None:
            built.loss_type = "ForCausalLM"  # what it takes then, and says so at every trace
        return built

    return make


_LLAMA = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_NO_BERT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

LLAMA: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 128256, "rope_theta": 500000.0, **_LLAMA,
    },
    "70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "vocab_size": 128256, "rope_theta": 500000.0, **_LLAMA,
    },
}  # fmt: skip


def _gpt2(width: int, layers: int, heads: int, vocab_size: int = 51200) -> dict[str, Any]:
    special = {"bos_token_id": 0, "eos_token_id": 0}
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocab_size}
    return {**shape, "n_positions": 1024, **special, **_NO_DROPOUT}


GPT2: Mapping[str, Mapping[str, Any]] = {
    "tiny": _gpt2(32, 2, 4, 64),
    "small": _gpt2(768, 12, 12, 50257),
    "350m": _gpt2(1024, 24, 16),
    "760m": _gpt2(1536, 24, 16),
    "1.3b": _gpt2(2048, 24, 32),
    "2.6b": _gpt2(2560, 32, 32),
    "6.7b": _gpt2(4096, 32, 32),
    "15b": _gpt2(5120, 48, 40),
    "39b": _gpt2(8192, 48, 64),
}
"""``small`` is the published GPT-2, the others are those of Zheng et al., "Alpa", 2022, table 5."""


def _bert(width: int, layers: int, heads: int, vocab_size: int = 30522) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab_size, **_NO_BERT_DROPOUT,
    }  # fmt: skip


BERT: Mapping[str, Mapping[str, Any]] = {
    "tiny": _bert(32, 2, 4, 64),
    "base": _bert(768, 12, 12),
    "large": _bert(1024, 24, 16),
}

MIXTRAL: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        **LLAMA["tiny"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    },
    "8x7b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    },
}  # fmt: skip


def _t5(width: int, inner: int, layers: int, heads: int, vocab_size: int = 32128) -> dict[str, Any]:
    return {
        "d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads, "d_kv": 64,
        "vocab_size": vocab_size, "dropout_rate": 0.0, "decoder_start_token_id": 0,
    }  # fmt: skip


T5: Mapping[str, Mapping[str, Any]] = {
    "tiny": {**_t5(32, 64, 3, 4, 64), "d_kv": 8},
    "base": _t5(768, 3072, 12, 12),
    "large": _t5(1024, 4096, 24, 16),
    "3b": {**_t5(1024, 16384, 24, 32), "d_kv": 128},
}

MAMBA2: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8,
        "state_size": 8, "n_groups": 2, "chunk_size": 4, "vocab_size": 64,
    },
    "2.7b": {
        "hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80, "head_dim": 64,
        "state_size": 128, "n_groups": 1, "chunk_size": 256, "vocab_size": 50288,
    },
}  # fmt: skip
