"""A byte-level BPE learnt from the corpus, with the chat format's control tokens.

Any text round-trips (the 256 bytes are in the vocabulary). A newline is never joined with the
spaces after it, so a prompt that ends in a newline splits as it did in training.
"""

from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from blocks._checks import check
from recipes.train import chat

# A word with the sign or space before it; up to three digits; signs; newlines; spaces.
SPLIT = r"[^\r\n\p{L}\p{N}_]?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|[\r\n]+|[^\S\r\n]+(?!\S)|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of at most ``vocab_size`` entries, control tokens first.

    The same texts in the same order give the same vocabulary.

    Reference: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units.
    """
    check(vocab_size >= 300, "vocab_size", "at least 300 (256 bytes)", vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [AddedToken(t, special=True, normalized=False) for t in chat.CONTROL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """int64 [vocab]: bytes of text each token stands for; 0 for control tokens."""
    control = set(chat.CONTROL_TOKENS)
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token in control else len(token)  # one sign per byte
    return lengths


def tokenizer_tensor(tokenizer: Tokenizer) -> Tensor:
    """uint8: the tokenizer as a checkpoint keeps it."""
    return torch.frombuffer(bytearray(tokenizer.to_str().encode()), dtype=torch.uint8)


def tokenizer_of(tensor: Tensor) -> Tokenizer:
    """The tokenizer of ``tokenizer_tensor``."""
    return Tokenizer.from_str(bytes(tensor.numpy()).decode())
