"""The stream of pieces is the text, and no piece holds half a character."""

from hypothesis import given
from hypothesis import strategies as st

from recipes.model.detokenizer import HALF, PATIENCE, Detokenizer
from recipes.model.tokenizer import Tokenizer
from tests.model.words import byte_fallback, byte_level


class Counting:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.num_decoded, self.longest = tokenizer, 0, 0

    def decode(self, ids: list[int], *, skip_control_tokens: bool = True) -> str:
        self.num_decoded += len(ids)
        self.longest = max(self.longest, len(ids))
        return self.tokenizer.decode(ids, skip_control_tokens=skip_control_tokens)


TOKENIZERS = {make.__name__: Tokenizer(make()) for make in (byte_level, byte_fallback)}
BYTES = TOKENIZERS["byte_level"]


def stream(tokenizer, ids: list[int], **options) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def byte_ids(data: bytes) -> list[int]:
    """One token a byte, whatever they spell."""
    ids = BYTES.backend.get_vocab()
    return [ids[symbol] for symbol in _symbols(data)]


def _symbols(data: bytes) -> list[str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    rest = [b for b in range(256) if b not in table]
    table |= {b: chr(256 + i) for i, b in enumerate(rest)}
    return [table[b] for b in data]


@given(text=st.text(max_size=40))
def test_pieces_join_to_the_text_for_any_text(text):
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        if HALF not in text:
            assert not any(HALF in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 419), max_size=60), skip=st.booleans())
def test_pieces_join_to_the_text_for_any_ids(ids, skip):
    ids = [i for i in ids if i < BYTES.num_ids]
    pieces = stream(BYTES, ids, skip_control_tokens=skip)
    assert "".join(pieces) == BYTES.decode(ids, skip_control_tokens=skip)


@given(ids=st.lists(st.integers(0, 600), max_size=60))
def test_byte_pieces_lose_nothing_but_what_is_no_character(ids):
    """This decoder calls a whole run of byte pieces invalid if one of them is, even those of it
    that were characters before: U+FFFD aside, the stream says no less."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [i for i in ids if i < tokenizer.num_ids]
    streamed, whole = "".join(stream(tokenizer, ids)), tokenizer.decode(ids)
    rest = iter(streamed)
    assert all(character in rest for character in whole if character != HALF)


BAD_AND_GOOD = st.lists(
    st.sampled_from([b"\xff", b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xc3", "😀".encode(), b"a"]),
    max_size=60,
)


@given(parts=BAD_AND_GOOD)
def test_invalid_bytes_never_split_a_character(parts):
    data = b"".join(parts)
    pieces = stream(BYTES, byte_ids(data))
    assert "".join(pieces) == data.decode(errors="replace")
    assert sum(piece.count("😀") for piece in pieces) == data.decode(errors="replace").count("😀")


def test_a_character_of_four_bytes_comes_out_with_its_last():
    assert stream(BYTES, byte_ids("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]


def test_an_unfinished_character_shows_at_the_end():
    assert stream(BYTES, byte_ids(b"a\xf0\x9f")) == ["a", "", "", HALF]


def test_a_stream_of_invalid_bytes_costs_a_constant_a_token():
    counting = Counting(BYTES)
    detokenizer = Detokenizer(counting)
    shown = 0
    for i in byte_ids(b"\xff" * 2000):
        shown += len(detokenizer.push(i))
    assert shown >= 2000 - PATIENCE
    assert counting.num_decoded < 2000 * 40
    assert counting.longest <= 3 * PATIENCE


def test_a_long_stream_costs_a_constant_a_token():
    ids = BYTES.encode("the quick brown fox 😀 " * 200)
    counting = Counting(BYTES)
    assert "".join(stream(counting, ids)) == BYTES.decode(ids)
    assert counting.num_decoded < 12 * len(ids)
