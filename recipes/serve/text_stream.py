"""Tokens in, text out: whole characters only, nothing shown that a stop string may take back."""

from typing import Protocol


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text piece by piece."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        ...

    def flush(self) -> str:
        """What was held back of an unfinished character (as U+FFFD)."""
        ...


class TextStream:
    """The visible text of one sequence.

    Text that could be the beginning of a stop string is held until it is decided. ``matched`` is
    the stop string found, after which nothing more is shown.

    Cost per token: one comparison per stop string and held character.
    """

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text that becomes visible with this token.

        Args:
            token_id: the next token.
            may_stop: False while a minimum length keeps stop strings from counting.
        """
        piece = self._detokenizer.push(token_id)
        if not self._stop:
            return piece
        if not may_stop:
            shown, self._held = self._held + piece, ""
            return shown
        return self._release(piece) if piece else ""

    def finish(self) -> str:
        """The held text, once the sequence has ended for another reason."""
        piece = self._detokenizer.flush()
        if not self._stop:
            return piece
        shown = self._release(piece)
        if self.matched is None:
            shown, self._held = shown + self._held, ""
        return shown

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda hit: hit[0])
            self._held = ""
            return text[:at]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
