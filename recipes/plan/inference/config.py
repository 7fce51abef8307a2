"""``InferenceConfig``: what a serving plan is asked for, in fields that ``key=value`` can set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, check_count, fail


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """A request for the ways to serve a model.

    model: ``family:size`` of a language model, or ``package.module:factory``.
    cluster: name of a bundled cluster, or a cluster file.
    num_nodes, num_devices: nodes of the cluster, and devices in each, instead of the file's.
    max_devices: most devices of a configuration; None for all there are.
    max_op: most devices that share the operations of a stage; None for all of a node.
    max_pp: most stages; None for no limit but ``max_devices``.
    batch_sizes: requests that pass together, separated by commas. Stages are cut for the first.
    seq_len: tokens of a request; None for the family's.
    prompts: tokens of the prompts whose prefill is timed, separated by commas; models that generate
        only, by default a quarter of ``seq_len`` and all of it.
    contexts: tokens before the one that is decoded, separated by commas; models that generate only.
    dtype: of parameters and activations; families only.
    memory_gib: of a device, instead of what the cluster file says.
    """

    model: str
    cluster: str = "8xH100"
    num_nodes: int | None = None
    num_devices: int | None = None
    max_devices: int | None = None
    max_op: int | None = None
    max_pp: int | None = None
    batch_sizes: str = "1,2,4,8,16"
    seq_len: int | None = None
    prompts: str | None = None
    contexts: str = "512,2048,8192"
    dtype: str = "bfloat16"
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_nodes", "num_devices", "max_devices", "max_op", "max_pp", "seq_len"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("batch_sizes", "contexts"):
            numbers(name, getattr(self, name))
        if self.prompts is not None:
            numbers("prompts", self.prompts)
        memory = self.memory_gib
        check(memory is None or memory > 0, "memory_gib", "above 0", memory)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "InferenceConfig":
        """
        Raises:
            ValueError: data that is no request.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        others = sorted(set(map(str, data)) - known)
        ok = not others and "model" in data
        check(ok, "settings", "a model and fields of InferenceConfig", others)
        return cls(**data)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Rising whole numbers of a text.

    >>> numbers("batch_sizes", "1,4")
    (1, 4)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise fail(name, "whole numbers above 0 with commas between", repr(text))
    found = tuple(map(int, parts))
    check(list(found) == sorted(set(found)), name, "rising numbers, each once", repr(text))
    return found
