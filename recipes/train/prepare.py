"""From a config to everything the steps read: text, tokenizer, rows."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from blocks._checks import check
from recipes.train.config import TrainConfig
from recipes.train.corpus import Corpus, load_corpus
from recipes.train.data import Batches, ChatRows, TextRows, encode_stream
from recipes.train.evaluate import cut_windows
from recipes.train.place import Place
from recipes.train.tokenizer import token_bytes, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Text:
    """What is read and learnt once. stream, held_out: uint16 or uint32 tokens, all documents one
    after another, each closed by the end token."""

    corpus: Corpus
    tokenizer: Tokenizer
    stream: np.ndarray
    held_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Inputs of a run; all of it follows from the config and the corpus.

    held_out: uint16 or uint32 token stream. token_bytes: int64 [vocab], bytes of text per token.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    batches: Batches
    held_out: np.ndarray
    token_bytes: np.ndarray


def prepare(config: TrainConfig, *, on_note: Callable[[str], None] = lambda text: None) -> Prepared:
    """Read the corpus, learn the tokenizer, lay out the rows."""
    return lay_out(config, read_text(config, on_note))


def prepare_together(config: TrainConfig, place: Place, on_note: Callable[[str], None]) -> Prepared:
    """``prepare`` by several processes: the first reads and learns, the others are handed tokens.

    Raises:
        ValueError, OSError: on every process, what the first met.
    """
    text: Text | Exception | None = None
    if place.is_first:
        try:
            text = read_text(config, on_note)
        except (ValueError, OSError) as error:
            text = error
    mine = text
    if isinstance(text, Text):
        text = dataclasses.replace(
            text, corpus=dataclasses.replace(text.corpus, train=(), held_out=())
        )
    text = place.share(text)
    if isinstance(text, Exception):
        raise text
    assert isinstance(text, Text), text
    return lay_out(config, mine if isinstance(mine, Text) else text)


def read_text(config: TrainConfig, on_note: Callable[[str], None]) -> Text:
    """Read the corpus and learn the tokenizer."""
    started = time.perf_counter()
    corpus = load_corpus(
        config.corpus,
        max_bytes=config.max_corpus_bytes,
        held_out_share=config.held_out_share,
        with_pairs=config.chat_share > 0,
    )
    check(
        bool(corpus.pairs) or config.chat_share == 0,
        "chat_share",
        "0 for a corpus without docstrings",
        config.chat_share,
    )
    on_note(
        f"corpus: {corpus.source}: {len(corpus.train)} files, {corpus.train_bytes / 1e6:.1f} MB"
        f" (and {corpus.held_out_bytes / 1e6:.2f} MB held out), {len(corpus.pairs)} questions"
    )
    asked = (f"{pair.name}\n{pair.answer}\n" for pair in corpus.pairs)
    texts = [*(document.text for document in corpus.train), *asked]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    stream = encode_stream(corpus.train, tokenizer)
    seconds = time.perf_counter() - started
    on_note(
        f"tokenizer: {tokenizer.get_vocab_size()} tokens, {len(stream) / 1e6:.2f} M in the text, "
        f"{corpus.train_bytes / len(stream):.2f} bytes each; prepared in {seconds:.1f} s"
    )
    return Text(corpus, tokenizer, stream, encode_stream(corpus.held_out, tokenizer))


def lay_out(config: TrainConfig, text: Text) -> Prepared:
    """The rows of a text.

    Raises:
        ValueError: too little text for the context.
    """
    corpus, tokenizer = text.corpus, text.tokenizer
    lengths = token_bytes(tokenizer)
    seen = cut_windows(text.held_out, lengths, context_len=config.context_len).num_bytes
    expected, hint = "text behind its first token", "give longer files or a larger held_out_share"
    check(seen > 0, "held-out text", expected, f"{len(text.held_out)} tokens", hint)
    chat_rows = None
    if corpus.pairs:
        chat_rows = ChatRows(corpus.pairs, tokenizer, config.context_len, config.seed)
    rows = TextRows(text.stream, config.context_len, config.seed)
    return Prepared(
        corpus=corpus,
        tokenizer=tokenizer,
        batches=Batches(rows, chat_rows, config.batch_size, config.chat_share),
        held_out=text.held_out,
        token_bytes=lengths,
    )
