"""``key=value`` texts laid over a request."""

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Any

from blocks._checks import check, fail
from blocks.sharding import Cluster, bundled_cluster, bundled_clusters
from recipes.plan.config import PlanConfig


def override(config: PlanConfig, settings: list[str]) -> PlanConfig:
    """
    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        check(bool(equals), "setting", "key=value", repr(setting))
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "see recipes/plan/config.py"
            raise fail("setting", "a field of PlanConfig", repr(key), hint)
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


def cluster_of(config: PlanConfig) -> Cluster:
    """The cluster a request names: a bundled one or a file.

    Raises:
        ValueError: neither.
    """
    if config.cluster in bundled_clusters():
        found = bundled_cluster(config.cluster)
    else:
        hint = f"or one of {', '.join(bundled_clusters())}"
        check(Path(config.cluster).is_file(), "cluster", "a cluster file", config.cluster, hint)
        found = Cluster.load(Path(config.cluster))
    if config.num_nodes is None and config.num_devices is None:
        return found
    return found.resized(num_nodes=config.num_nodes, num_devices=config.num_devices)
