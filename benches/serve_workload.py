"""A 200M-parameter Llama with random weights and the three workloads that serving is judged by.

Prompts are token ids, so every engine gets exactly the same work. Each round has other ids in the
same shapes: no cache of an earlier round can help.
"""

import itertools
import random
import string
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch

from recipes.model import Decoder, ModelConfig, init_weights, save_model
from recipes.model.tokenizer import Tokenizer

VOCAB = 32000


class Ask(NamedTuple):
    """One request: prompt token ids, and how many tokens to generate."""

    prompt: list[int]
    out: int


def single(rng: random.Random) -> list[Ask]:
    """One stream: 128 tokens in, 128 out."""
    return [Ask(_ids(rng, 128), 128)]


def mixed(rng: random.Random) -> list[Ask]:
    """32 requests, prompts of 16 to 512 tokens, outputs of 16 to 256."""
    shapes = random.Random(20240611)
    lengths = [(shapes.randint(16, 512), shapes.randint(16, 256)) for _ in range(32)]
    return [Ask(_ids(rng, prompt), out) for prompt, out in lengths]


def shared_prefix(rng: random.Random) -> list[Ask]:
    """32 requests that share 512 tokens, 16 of their own each, 32 out."""
    head = _ids(rng, 512)
    return [Ask(head + _ids(rng, 16), 32) for _ in range(32)]


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def make_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the model: 16 layers, hidden 1024, 16 heads over 4, tied embeddings; about 213M."""
    config = ModelConfig(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=1024,
        intermediate_size=2816,
        num_layers=16,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        max_positions=4096,
        tie_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
        dtype=str(dtype).removeprefix("torch."),  # type: ignore
    )
    decoder = Decoder(config)
    init_weights(decoder, torch.Generator().manual_seed(0))
    save_model(decoder, folder, make_tokenizer())
    return folder


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with 32,000 ids, its merges enumerated instead of trained."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words, merges = ["<pad>", "<s>", "</s>", *alphabet], []
    letters = string.ascii_lowercase
    grown = itertools.chain(
        ((a, b) for a in letters for b in letters),
        ((a + b, c) for a in letters for b in letters for c in letters),
        ((a + b, c + d) for a in letters for b in letters for c in letters for d in letters),
    )
    for left, right in itertools.islice(grown, VOCAB - len(words)):
        merges.append((left, right))
        words.append(left + right)
    vocab = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(words[:3])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
