"""Tiny random models of every family in transformers, the oracle of these tests.

transformers is imported inside functions: it takes seconds, and only these tests need it.
"""

import functools
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
OPT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "init_std": 0.2,
}
GPT2 = {
    "vocab_size": 101,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "llama-tied-biased": (
        "Llama",
        SIZES | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3": ("Llama", SIZES | {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-yarn": ("Llama", SIZES | {"rope_parameters": YARN}),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", SIZES | QWEN_WINDOW),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 16}),
    "qwen3-window": ("Qwen3", SIZES | QWEN_WINDOW | {"head_dim": 8, "attention_bias": True}),
    "mistral": ("Mistral", SIZES | {"sliding_window": 7}),
    "mistral-full": ("Mistral", SIZES | {"sliding_window": None, "num_key_value_heads": 1}),
    "mixtral": ("Mixtral", SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "gemma2": (
        "Gemma2",
        SIZES
        | {
            "initializer_range": 0.06,
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 11,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-by-layer": (
        "GPT2",
        GPT2
        | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40, "tie_word_embeddings": False},
    ),
    "opt": ("OPT", OPT),
    "opt-post-norm": (
        "OPT",
        OPT
        | {"do_layer_norm_before": False, "word_embed_proj_dim": 16, "tie_word_embeddings": False},
    ),
}


@functools.cache
def hf_model(case: str) -> Any:
    """The transformers model of a case, its biases and norm weights random too."""
    import transformers

    name, options = CASES[case]
    config = getattr(transformers, f"{name}Config")(**options)
    config._attn_implementation = "eager"  # the only one that applies softcaps
    torch.manual_seed(1)
    classes = {"GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, classes.get(name, f"{name}ForCausalLM"))(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def hf_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[num_tokens] -> [num_tokens, vocab_size]."""
    with torch.inference_mode():
        return model(tokens[None]).logits[0]


@functools.cache
def hf_folder(case: str, root: Path) -> Path:
    """The case saved by transformers under ``root``."""
    folder = root / case
    hf_model(case).save_pretrained(folder)
    return folder


def hf_greedy(model: Any, prompt: torch.Tensor, num_tokens: int) -> list[int]:
    """Tokens that transformers' ``generate`` appends, end-of-sequence ids ignored."""
    with torch.inference_mode():
        out = model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            eos_token_id=100_000,  # never drawn
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()
