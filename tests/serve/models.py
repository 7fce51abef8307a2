"""Tiny random models and a tokenizer, made on the spot."""

import functools
from pathlib import Path
from typing import Any

import tokenizers
import torch

from recipes.model import Decoder, ModelConfig, init_weights
from recipes.model.tokenizer import Tokenizer
from recipes.serve import Engine, EngineConfig
from recipes.serve.loading import Loaded, detokenizers
from recipes.serve.memory import make_cache
from recipes.serve.runner import Runner

TEXT = """
def add(a, b):
    return a + b

class Stack:
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()

the quick brown fox jumps over the lazy dog; user assistant system hello world
"""
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|developer|>", "<|tool|>")
EOS = 0


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with a chat template; ``<|end|>`` is id 0."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return Tokenizer(backend, {"eos_token": "<|end|>"}, TEMPLATE)


@functools.cache
def tiny_decoder(max_positions: int = 256, seed: int = 0) -> Decoder:
    """A two-layer fp32 Llama with random weights, wide enough in spread to vary its output."""
    config = ModelConfig(
        family="llama",
        vocab_size=tiny_tokenizer().num_ids,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=max_positions,
        eos_token_ids=(EOS,),
        dtype="float32",
    )
    decoder = Decoder(config)
    init_weights(decoder, torch.Generator().manual_seed(seed), std=0.3)
    return decoder.requires_grad_(False).eval()


def tiny_engine(decoder: Decoder | None = None, **settings: Any) -> Engine:
    """An engine over the tiny decoder; settings are fields of ``EngineConfig``."""
    small = {"kv_bytes": 1 << 20, "max_num_seqs": 16, "token_budget": 64, "block_size": 4}
    config = EngineConfig(**(small | settings))  # type: ignore
    decoder = decoder or tiny_decoder()
    return Engine(
        Runner(decoder, make_cache(decoder, config)), detokenizers(tiny_tokenizer()), config
    )


def tiny_loaded(**settings: Any) -> Loaded:
    """What ``load`` would return for the tiny model."""
    return Loaded(Path("tiny"), tiny_engine(**settings), tiny_tokenizer(), 0, 0.0)
