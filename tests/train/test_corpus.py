import sysconfig
from pathlib import Path

import pytest

from recipes.train import load_corpus
from recipes.train.corpus import is_table
from recipes.train.docstrings import first_sentences, parse_docstrings


@pytest.fixture(scope="module")
def library():
    return load_corpus(with_pairs=True)


def test_the_standard_library_is_read_whole_and_clean(library):
    names = {d.name for d in (*library.train, *library.held_out)}
    assert {"json/encoder.py", "argparse.py", "asyncio/base_events.py"} <= names
    unwanted = ("test/", "site-packages/", "idlelib/idle_test/", "pydoc_data/")
    assert not [name for name in names if name.startswith(unwanted)]
    assert "encodings/cp1252.py" not in names
    assert library.train_bytes > 5_000_000


def test_training_and_held_out_text_share_nothing(library):
    train, held_out = ({d.name for d in part} for part in (library.train, library.held_out))
    assert not train & held_out
    assert 0.005 < library.held_out_bytes / library.train_bytes < 0.1


def test_the_corpus_is_the_same_every_time(library):
    again = load_corpus(with_pairs=True)
    assert again.digest == library.digest
    assert again == library


def test_the_digest_sees_every_text(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"text of {name}\n" * 50)
    before = load_corpus(tmp_path).digest
    (tmp_path / "b.txt").write_text("text of b.txt\n" * 49 + "text of b.txT\n")
    assert load_corpus(tmp_path).digest != before


def test_a_cap_takes_a_prefix_of_the_same_order():
    small, large = load_corpus(max_bytes=100_000), load_corpus(max_bytes=300_000)
    assert 99_000 < small.train_bytes <= 100_000
    assert [d.name for d in small.train] == [d.name for d in large.train[: len(small.train)]]


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("json.dumps", "Serialize ``obj`` to a JSON formatted ``str``."),
        ("math.sqrt", "Return the square root of x."),
        ("random.shuffle", "Shuffle list x in place"),
        ("str.upper", "Return a copy of the string converted to uppercase."),
        ("os.path.join", "Join two or more pathname components"),
        ("len", "Return the number of items in a container."),
        ("collections.OrderedDict", "Dictionary that remembers insertion order"),
    ],
)
def test_public_names_have_their_docstring_as_answer(library, name, begins):
    answers = {pair.name: pair.answer for pair in library.pairs}
    assert answers[name].startswith(begins)


def test_pairs_are_many_short_and_one_line_each(library):
    assert len(library.pairs) > 4000
    assert len({pair.name for pair in library.pairs}) == len(library.pairs)
    assert all("\n" not in p.answer and 8 <= len(p.answer) <= 224 for p in library.pairs)


def test_a_folder_of_ones_own_text(tmp_path):
    (tmp_path / "sub").mkdir()
    for index in range(30):
        (tmp_path / "sub" / f"{index}.md").write_text(f"note {index}\r\n" * 20)
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / ".hidden").write_text("secret")
    corpus = load_corpus(tmp_path, held_out_share=0.2)
    texts = [d.text for d in (*corpus.train, *corpus.held_out)]
    assert len(texts) == 30
    assert corpus.held_out
    assert not any("\r" in text or "secret" in text for text in texts)


def test_a_single_file_keeps_its_end_for_validation(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1000)))
    corpus = load_corpus(path, held_out_share=0.1)
    assert corpus.train[0].text + corpus.held_out[0].text == path.read_text()
    assert corpus.held_out[0].text.startswith("line 9")


def test_docstrings_of_ones_own_code_become_pairs(tmp_path):
    code = '"""All about nests."""\n\n\ndef find(x):\n    """Find a nest.\n\n    More."""\n'
    (tmp_path / "nest.py").write_text(code)
    (tmp_path / "other.py").write_text("x = 1\n")
    found = load_corpus(tmp_path, held_out_share=1e-9, with_pairs=True)
    names = {p.name: p.answer for p in found.pairs}
    expected = {"nest": "All about nests.", "nest.find": "Find a nest."}
    held_out = {d.name for d in found.held_out}
    assert names == ({} if "nest.py" in held_out else expected)


def test_a_missing_or_empty_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="existing"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="text files"):
        load_corpus(tmp_path)


def test_tables_are_told_from_texts():
    encodings = Path(sysconfig.get_path("stdlib")) / "encodings"
    assert is_table((encodings / "cp1252.py").read_text())
    assert not is_table((encodings.parent / "codecs.py").read_text())


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("Return x.\n\nMore.", "Return x."),
        ("f(x) -> y\n\nDo the thing.", "Do the thing."),
        ("f(x) -> the list of all names", "the list of all names"),
        ("One\nsentence over\n  lines.", "One sentence over lines."),
        ("First one. Second one. Third one.", "First one. Second one."),
        ("   \n", ""),
        (">>> 1 + 1\n2", ""),
        ("=" * 20, ""),
    ],
)
def test_first_sentences(docstring, answer):
    assert first_sentences(docstring) == answer


def test_long_answers_are_cut_at_a_word():
    text = first_sentences("word " * 200)
    assert len(text) <= 224
    assert text.endswith("word ...")


def test_source_that_does_not_parse_has_no_docstrings():
    assert list(parse_docstrings("def f(:\n", "m")) == []
    assert list(parse_docstrings("\0", "m")) == []
