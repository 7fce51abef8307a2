import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.train import tiny
from recipes.train import tokenizer as tokenizers
from recipes.train.chat import CONTROL_TOKENS, END, ROLES, is_common
from recipes.train.corpus import Document, Pair
from recipes.train.data import IGNORE, Batches, ChatRows, TextRows, encode_stream
from recipes.train.prepare import prepare

TEXT = "def add(one, two):\n    '''Sum of two.'''\n    return one + two\n\n\nclass Box:\n    pass\n"
PAIRS = [Pair("function", f"m.f{i}", f"Return number {i} of the list.") for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_tokenizer([TEXT * 5, *(p.answer for p in PAIRS)], 340)


@given(text=st.text(max_size=80))
def test_any_text_comes_back(text):
    learnt = tokenizers.train_tokenizer([TEXT], 300)
    ids = learnt.encode(text, add_special_tokens=False).ids
    if not any(control in text for control in CONTROL_TOKENS):
        assert learnt.decode(ids, skip_special_tokens=False) == text


def test_a_prompt_that_ends_in_a_newline_splits_as_inside_a_text(tokenizer):
    whole = tokenizer.encode("def f(x):\n    return x\n").tokens
    head = tokenizer.encode("def f(x):\n").tokens
    assert whole[: len(head)] == head


def test_token_bytes_count_the_text(tokenizer):
    text = TEXT + "é€😀"
    ids = encode_stream([Document("a", text)], tokenizer)
    assert ids[-1] == tokenizer.token_to_id(END)
    assert tokenizers.token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_the_vocabulary_is_the_same_every_time(tokenizer):
    again = tokenizers.train_tokenizer([TEXT * 5, *(p.answer for p in PAIRS)], 340)
    assert again.to_str() == tokenizer.to_str()


@given(
    length=st.integers(40, 400),
    context_len=st.integers(1, 16),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_an_epoch_of_text_rows_sees_each_window_once(length, context_len, seed, epoch):
    rows = TextRows(np.arange(length), context_len, seed)
    inputs, labels = zip(
        *(rows.row(epoch * rows.num_rows + i) for i in range(rows.num_rows)), strict=True
    )
    seen = np.concatenate(inputs)
    assert len(set(seen.tolist())) == len(seen) == rows.num_rows * context_len
    assert (np.concatenate(labels) == seen + 1).all()


def test_a_stream_too_short_for_a_row_is_refused():
    with pytest.raises(ValueError, match="training text"):
        TextRows(np.arange(10), 8, 0)


def test_held_out_text_of_one_token_is_refused_before_the_run(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text("some text, and some more of it. " * 100)
    config = dataclasses.replace(tiny(), corpus=str(tmp_path), vocab_size=300)
    (held_out,) = prepare(config).corpus.held_out
    (tmp_path / held_out.name).write_text("x")
    with pytest.raises(ValueError, match="held-out text: expected text behind its first token"):
        prepare(config)


def decoded(tokenizer, tokens) -> str:
    return tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)


def test_every_pair_is_asked_once_an_epoch(tokenizer):
    rows = ChatRows(PAIRS, tokenizer, 256, seed=0)
    text = "".join(decoded(tokenizer, rows.row(i)[0]) for i in range(rows.num_rows))
    for pair in PAIRS:
        assert (
            text.count(f"{pair.name} ")
            + text.count(f"{pair.name}?")
            + text.count(f"{pair.name}.")
            + text.count(f"{pair.name}(")
            >= 1
        ), pair.name


def test_loss_is_taken_on_answers_only(tokenizer):
    rows = ChatRows(PAIRS, tokenizer, 256, seed=0)
    for index in range(2 * rows.num_rows):
        inputs, labels = rows.row(index)
        assert len(inputs) == len(labels) == 256
        learnt = labels >= 0
        assert (labels[learnt][:-1] == inputs[1:][learnt[:-1]][: learnt.sum() - 1]).all()
        answers = decoded(tokenizer, labels[learnt]).split(END)
        assert not any(role in text for text in answers for role in ROLES.values())
        known = {p.answer for p in PAIRS}
        assert all(text in known or text.startswith("I am") for text in answers[:-1])
        assert set(labels[~learnt].tolist()) <= {IGNORE}


@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_batch_depends_on_its_step_alone(steps):
    learnt = tokenizers.train_tokenizer([TEXT * 5], 300)
    stream = encode_stream([Document("a", TEXT * 30)], learnt)

    def batches():
        rows = ChatRows(PAIRS, learnt, 32, seed=3)
        return Batches(TextRows(stream, 32, 3), rows, 4, 0.4)

    used = batches()
    for step in steps:
        fresh = batches().batch(step)
        again = used.batch(step)
        assert torch.equal(fresh.inputs, again.inputs)
        assert torch.equal(fresh.labels, again.labels)


def test_the_share_of_chat_rows_is_kept_and_no_row_is_used_twice(tokenizer):
    class Spy:
        def __init__(self):
            self.asked = []

        def row(self, index):
            self.asked.append(index)
            return np.zeros(4, dtype=int), np.zeros(4, dtype=int)

    text, chat = Spy(), Spy()
    batches = Batches(text, chat, 8, 0.55)  # type: ignore[arg-type]
    for step in range(100):
        batches.batch(step)
    assert text.asked == list(range(len(text.asked)))
    assert chat.asked == list(range(len(chat.asked)))
    assert abs(len(chat.asked) - 0.55 * 800) <= 1


def test_seeds_differ(tokenizer):
    one, other = (ChatRows(PAIRS, tokenizer, 64, seed) for seed in (0, 1))
    assert any((one.row(i)[0] != other.row(i)[0]).any() for i in range(3))


def test_common_names_are_builtins_and_much_used_modules():
    def pair(name):
        return Pair("function", name, "x")

    assert all(is_common(pair(name)) for name in ("len", "str.upper", "json.dumps", "os.path.join"))
    assert not any(is_common(pair(name)) for name in ("OSError.args", "imaplib.IMAP4", "os.a.b.c"))


def test_prepare_is_a_function_of_the_config():
    config = dataclasses.replace(tiny(), chat_share=0.5, max_corpus_bytes=60_000)
    one, other = prepare(config), prepare(config)
    step = random.Random(0).randrange(50)
    assert torch.equal(one.batches.batch(step).inputs, other.batches.batch(step).inputs)
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    assert (one.held_out == other.held_out).all()
