"""``key=value`` texts laid over a config."""

import dataclasses
import difflib
import types
from typing import Any

from blocks._checks import check, fail
from recipes.train.config import TrainConfig
from recipes.train.dial import dial


def override(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """Apply ``key=value`` texts.

    ``depth=N`` is one dial for many fields (see ``dial``); it is turned first, whatever its place
    among the settings, so that fields given by name win. Of a key given twice the last one counts.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        check(bool(equals), "setting", "key=value", repr(setting))
        if key == "depth":
            config = dial(config, _parse(key, value, int))
            continue
        if key not in fields:
            near = difflib.get_close_matches(key, [*fields, "depth"], n=1)
            hint = f"did you mean {near[0]}?" if near else "see recipes/train/config.py"
            raise fail("setting", "a field of TrainConfig", repr(key), hint)
        changes[key] = _parse(key, value, fields[key].type)
    return dataclasses.replace(config, **changes)


def _parse(key: str, text: str, kind: Any) -> Any:
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
