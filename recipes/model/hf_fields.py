"""Typed look-ups in a parsed JSON object, so that a broken file gives one clear error."""

from collections.abc import Mapping
from typing import Any

from blocks._checks import fail
from recipes.model.config import MAX_SIZE


class Fields:
    """The keys of one JSON file.

    Every getter checks the type: JSON written by strangers may hold a string where a number
    belongs, and the error should name the file and the key.
    """

    def __init__(self, raw: Mapping[str, Any], file: str = "config.json") -> None:
        if not isinstance(raw, Mapping):
            raise fail(file, "a JSON object", type(raw).__name__)
        self.raw, self.file = raw, file

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default the key is required."""
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        return value

    def size(self, key: str, default: int | None = None, limit: int = MAX_SIZE) -> int:
        """A whole number from 1 to ``limit``; checked before anything is built of that size."""
        value = self.integer(key, default)
        if not 0 < value <= limit:
            raise self.wrong(key, f"1 to {limit}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default the key is required."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not abs(value) < 1e30:
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def optional_integer(self, key: str, absent: int | None = None) -> int | None:
        """None where the key is null; ``absent`` where it is not there at all."""
        if key not in self.raw:
            return absent
        return self.integer(key) if self.has(key) else None

    def optional_number(self, key: str, absent: float | None = None) -> float | None:
        """None where the key is null; ``absent`` where it is not there at all."""
        if key not in self.raw:
            return absent
        return self.number(key) if self.has(key) else None

    def object(self, key: str) -> "Fields":
        """A nested object; empty where the key is missing or null."""
        return Fields(self.raw.get(key) or {}, f"{self.file} {key}")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty where the key is missing or null."""
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(ids)

    def choice(self, key: str, choices: Mapping[str, Any], default: str) -> Any:
        """The meaning of a word out of a fixed list."""
        word = self.text(key, default)
        if word not in choices:
            raise self.wrong(key, f"one of {sorted(choices)}")
        return choices[word]

    def refuse(self, key: str, why: str) -> None:
        """Raise where an option that would change the result is switched on."""
        if self.raw.get(key):
            raise ValueError(f"{self.file} {key}: expected it unset, got {self._shown(key)}; {why}")

    def wrong(self, key: str, expected: str) -> ValueError:
        return fail(f"{self.file} {key}", expected, self._shown(key))

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"{self.file}: expected the key {key!r}, got none")
            return default
        return value

    def _shown(self, key: str) -> str:
        return repr(self.raw.get(key))[:80]
