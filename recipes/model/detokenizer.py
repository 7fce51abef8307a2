"""Text of a token stream, piece by piece, without ever showing half a character."""

from typing import Protocol

HALF = "\ufffd"  # what decoders put where bytes are no UTF-8 (yet)
MAX_HALF_TOKENS = 3  # a character is at most four bytes, so at most three tokens precede its last
PATIENCE = 8


class Decodes(Protocol):
    """What the detokenizer asks of a tokenizer."""

    def decode(self, ids: list[int], *, skip_control_tokens: bool = True) -> str: ...


class Detokenizer:
    """Turns ids pushed one at a time into text, as early as it is certain.

    A token may end inside a character, and its text may depend on the token before it (a leading
    space). So the last pieces are decoded together with the new one, and text that ends in an
    incomplete character waits. The texts returned, joined, are ``decode`` of all ids.

    A push decodes a handful of tokens however long the stream is: invalid bytes do not pile up,
    as all but those that may still become a character are let go. (Decoders with byte pieces
    reject a run of them as a whole for one invalid byte; what was a character before it keeps
    being shown as one here.)

    Args:
        skip_control_tokens: leave control tokens out of the text.
    """

    def __init__(self, tokenizer: Decodes, *, skip_control_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_control_tokens
        self._ids: list[int] = []  # the tokens of the last text given out, then those waiting
        self._num_shown = 0  # how many of them have been given out
        self._shown = ""  # their text

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if not text.endswith(HALF):
            return self._show(text, len(self._ids))
        if len(self._ids) - self._num_shown >= PATIENCE:
            return self._show_invalid(text)
        return ""

    def flush(self) -> str:
        """The rest, at the end of the stream; an unfinished character shows as U+FFFD."""
        return self._show(self._decode(self._ids), len(self._ids))

    def _show(self, text: str, num_ids: int) -> str:
        """Give out ``text``, that of the first ``num_ids``, but for what was given out before."""
        new = text[len(self._shown) :]
        self._ids = self._ids[self._num_shown :]
        self._num_shown = num_ids - self._num_shown
        self._shown = self._decode(self._ids[: self._num_shown])
        return new

    def _show_invalid(self, text: str) -> str:
        """Give out waiting tokens up to a point no character can span."""
        last = len(self._ids) - MAX_HALF_TOKENS
        for stop in range(last, self._num_shown, -1):
            part = self._decode(self._ids[:stop])
            if text.startswith(part):
                return self._show(part, stop)
        return ""

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_control_tokens=self._skip)
