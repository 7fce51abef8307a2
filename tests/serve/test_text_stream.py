"""Stop strings over token borders, held back until decided."""

from hypothesis import given
from hypothesis import strategies as st

from recipes.serve.text_stream import TextStream


class Pieces:
    """A detokenizer whose token ``i`` is ``pieces[i]``."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self._pieces, self._rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return self._rest


def run(pieces: list[str], stop: tuple[str, ...], rest: str = "") -> tuple[list[str], str | None]:
    """What is shown after each token until a stop matches, and which one did."""
    stream = TextStream(Pieces(pieces, rest), stop)
    shown = []
    for token in range(len(pieces)):
        shown.append(stream.push(token))
        if stream.matched is not None:
            return shown, stream.matched
    shown.append(stream.finish())
    return shown, stream.matched


def first_stop(text: str, stop: tuple[str, ...]) -> int:
    found = [text.find(s) for s in stop if s in text]
    return min(found, default=len(text))


texts = st.text("ab", min_size=0, max_size=4)


@given(st.lists(texts, max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_shown_text_ends_before_the_first_stop_string(pieces, stop):
    shown, matched = run(pieces, tuple(stop))
    visible = "".join(shown)
    whole = "".join(pieces)
    if matched is None:
        assert visible == whole
        assert not any(s in whole for s in stop)
        return
    # Tokens come one by one: the earliest match within the text seen so far wins.
    seen = "".join(pieces[: len(shown)])
    assert visible == seen[: first_stop(seen, tuple(stop))]
    assert not any(s in visible for s in stop)


@given(st.lists(texts, max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_that_is_shown_is_ever_part_of_a_stop_string_found_later(pieces, stop):
    shown, matched = run(pieces, tuple(stop))
    if matched is not None:
        for upto in range(len(shown)):
            prefix = "".join(shown[:upto])
            assert "".join(shown).startswith(prefix)


def test_possible_beginnings_are_held_back():
    shown, matched = run(["x<", "en", "d>", "y"], ("<end>",))
    assert shown == ["x", "", ""]
    assert matched == "<end>"


def test_a_refuted_beginning_is_released():
    shown, matched = run(["<e", "xit>"], ("<end>",))
    assert shown == ["", "<exit>", ""]
    assert matched is None


def test_held_text_is_released_at_the_end():
    assert run(["ok<e"], ("<end>",)) == (["ok", "<e"], None)


def test_the_rest_of_a_character_can_complete_a_stop_string():
    assert run(["a<en"], ("<end>",), rest="d>") == (["a", ""], "<end>")


def test_stop_strings_do_not_count_before_the_minimum_length():
    stream = TextStream(Pieces(["stop", "stop"]), ("stop",))
    assert stream.push(0, may_stop=False) == "stop"
    assert stream.matched is None
    assert stream.push(1) == ""
    assert stream.matched == "stop"


def test_without_stop_strings_pieces_pass_through():
    assert run(["a", "", "b"], (), rest="c") == (["a", "", "b", "c"], None)
