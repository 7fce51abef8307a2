"""``override``: ``key=value`` texts laid over a dataclass of settings, and what ``--help`` says."""

import argparse
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from blocks._checks import check, fail

T = TypeVar("T")


def override(config: T, settings: Sequence[str], *, see: str, also: Sequence[str] = ()) -> T:
    """Apply ``key=value`` texts to a frozen dataclass. Of a key given twice the last one counts.

    Args:
        see: the file that lists the fields, named in errors.
        also: further keys that the caller has taken out of ``settings`` already.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        check(bool(equals), "setting", "key=value", repr(setting))
        if key not in fields:
            near = difflib.get_close_matches(key, [*fields, *also], n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {see}"
            raise fail("setting", f"a field of {type(config).__name__}", repr(key), hint)
        changes[key] = parse(key, value, fields[key].type)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def parse(key: str, text: str, kind: Any) -> Any:
    """
    Args:
        kind: a type that reads text (``bool`` reads true, false, 1 and 0), ``kind | None``, or a
            ``Literal`` of texts.

    Raises:
        ValueError: the text is no such value; the key is named.
    """
    if get_origin(kind) is Literal:
        check(text in get_args(kind), key, " or ".join(get_args(kind)), repr(text))
        return text
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() in ("none", ""):
        return None
    wanted = next(k for k in kinds if k is not type(None))
    if wanted is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise fail(key, "true or false", repr(text))
        return text.lower() in ("true", "1")
    try:
        return wanted(text.replace("_", "") if wanted in (int, float) else text)
    except ValueError:
        raise fail(key, f"a value of type {wanted.__name__}", repr(text)) from None


def add_settings(parser: argparse.ArgumentParser, help: str) -> None:
    """``key=value ...``, any number; a parser that is told its default calls none required."""
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help=help)


def in_any_order(word: str, settings: Sequence[str]) -> tuple[str, list[str]]:
    """A word, such as a model or a file, and the ``key=value`` texts around it.

    A word with an equals sign is what it is if there is a file of that name.

    >>> in_any_order("batch_size=8", ["llama:8b", "num_nodes=2"])
    ('llama:8b', ['batch_size=8', 'num_nodes=2'])
    """
    others = list(settings)
    at = next((at for at, text in enumerate(others) if "=" not in text), None)
    if at is not None and "=" in word and not Path(word).exists():
        return others.pop(at), [word, *others]
    return word, others


def described(config: Any, title: str = "settings", values: str = "defaults") -> str:
    """What there is to set, for the end of a ``--help``: the record's docstring, and its values.

    Args:
        config: a dataclass of settings, or the class if all of its fields have defaults.
        values: what the values are called.
    """
    kind = config if isinstance(config, type) else type(config)
    told = (inspect.getdoc(kind) or "").partition("\n\n")[2].replace("``", "")
    made = config() if isinstance(config, type) else config
    pairs = [f"{field.name}={_text(getattr(made, field.name))}" for field in _optional(kind)]
    listed = textwrap.fill(" ".join(pairs), 98, break_on_hyphens=False, break_long_words=False)
    return f"{title}:\n\n{told}\n\n{values}:\n\n{listed}"


def _optional(kind: Any) -> list[dataclasses.Field[Any]]:
    """Fields that need not be given."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [one for one in fields if (one.default, one.default_factory) != (missing, missing)]


def _text(value: object) -> str:
    """A value as it would be written on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
