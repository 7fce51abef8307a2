"""``read_config``: the file a user writes, TOML or JSON, and ``key=value`` texts laid over it."""

import dataclasses
import difflib
import json
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from blocks._checks import check, fail
from recipes.place.config import (
    Cluster,
    EngineLimits,
    PlaceConfig,
    PlacedModel,
    Serving,
    Traffic,
)
from recipes.settings import parse

SECTIONS: dict[str, type] = {
    "cluster": Cluster,
    "engine": EngineLimits,
    "traffic": Traffic,
    "serving": Serving,
}
SEE = "see recipes/place/config.py"
T = TypeVar("T")


def read_config(path: Path, settings: Sequence[str] = ()) -> PlaceConfig:
    """Read a file of tables ``[[models]]``, ``[cluster]``, ``[engine]``, ``[traffic]`` and
    ``[serving]``, all but the first optional. Files it names are looked for beside it.

    Args:
        settings: ``num_devices=4``, ``port=0`` (fields of any table) or ``MODEL.rate=3``.

    Raises:
        ValueError: no such file, or a field that is wrong, with its name.
    """
    check(path.is_file(), "config", "a TOML or JSON file", str(path), "check the path")
    try:
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, or nested too deeply
        raise fail(f"config {path.name}", "TOML, or JSON in a .json file", error) from None
    return parse_config(data, settings, folder=path.parent)


def parse_config(data: Any, settings: Sequence[str] = (), *, folder: Path = Path()) -> PlaceConfig:
    """
    Args:
        data: what the file holds.
        folder: that relative paths start from.

    Raises:
        ValueError: as ``read_config``.
    """
    _known("config", data, ("models", *SECTIONS))
    models = data.get("models", [])
    check(isinstance(models, list), "models", "a list of tables", _kind(models))
    tables = {name: dict(_table(name, data.get(name, {}))) for name in SECTIONS}
    rows = [dict(_table(f"models[{at}]", row)) for at, row in enumerate(models)]
    for setting in settings:
        _lay_over(setting, tables, rows)
    for row in rows:
        for key in ("folder", "profile"):
            _beside(row, key, folder)
    _beside(tables["traffic"], "trace", folder)
    _beside(tables["serving"], "placement", folder)
    parts = {name: _made(kind, tables[name], name) for name, kind in SECTIONS.items()}
    placed = tuple(_made(PlacedModel, row, f"models[{at}]") for at, row in enumerate(rows))
    return PlaceConfig(placed, **parts)


def _lay_over(setting: str, tables: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    key, equals, value = setting.partition("=")
    check(bool(equals), "setting", "key=value", repr(setting))
    of_model, dot, field = key.rpartition(".")
    owners: dict[str, tuple[Any, Any]] = {}
    if dot:
        row = next((row for row in rows if row.get("name") == of_model), None)
        names = [row.get("name") for row in rows]
        if row is None:
            raise fail("setting", f"MODEL.field of one of {names}", repr(key))
        owners = {f.name: (row, f.type) for f in dataclasses.fields(PlacedModel)}
    else:
        field = key
        for name, kind in SECTIONS.items():
            owners |= {f.name: (tables[name], f.type) for f in dataclasses.fields(kind)}
    if field not in owners:
        near = difflib.get_close_matches(field, owners, n=1)
        hint = f"did you mean {near[0]}?" if near else SEE
        raise fail("setting", "a field of the config", repr(key), hint)
    table, kind = owners[field]
    table[field] = parse(key, value, kind)


def _made(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _known(where, table, fields)
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in table]
    check(not needed, where, f"a field {', '.join(needed)}", "none", SEE)
    values = {name: _value(f"{where}.{name}", fields[name].type, table[name]) for name in table}
    return kind(**values)


def _value(name: str, kind: Any, value: Any) -> Any:
    """The value, where it is of the field's kind; whole numbers will do for others."""
    if get_origin(kind) is not None and not isinstance(kind, types.UnionType):
        kinds: tuple[Any, ...] = (str,)  # a Literal of texts, which the class checks
    else:
        kinds = get_args(kind) or (kind,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and float in kinds and int not in kinds:
        check(abs(value) < 1 << 1000, name, "a number that a float can hold", f"{value!r}"[:80])
        return float(value)
    fits = type(value) in kinds
    shown = " or ".join({str: "a text", int: "a whole number"}.get(k, "a number")
                        for k in kinds if k is not type(None))  # fmt: skip
    check(fits, name, shown, f"{value!r}"[:80])
    return value


def _known(where: str, table: Any, names: Any) -> None:
    for key in _table(where, table):
        near = difflib.get_close_matches(str(key), list(names), n=1)
        hint = f"did you mean {near[0]}?" if near else SEE
        check(key in names, where, f"fields among {sorted(names)}", repr(key), hint)


def _table(where: str, value: Any) -> Mapping[str, Any]:
    check(isinstance(value, Mapping), where, "a table of fields", _kind(value))
    return value


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _beside(table: dict[str, Any], key: str, folder: Path) -> None:
    """A path that exists beside the file is meant so; names of bundled things stay names."""
    value = table.get(key)
    if not isinstance(value, str) or not value or Path(value).is_absolute():
        return
    if os.path.exists(folder / value):  # what is no path at all is a name too
        table[key] = str(folder / value)
