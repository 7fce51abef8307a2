"""``Placement``: which devices form groups, and which models each group hosts."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blocks._checks import check, fail, reading
from blocks.sched.placement.group import Group
from blocks.sched.placement.problem import Problem, problems_of
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.profile import Profile

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where models live; a request may be answered by any group that hosts its model.

    >>> placement = Placement.equal_groups(4, Configuration(1, 2), [["a", "b"], ["a"]])
    >>> print(placement)
    0: devices 0,1, 1 x 2: a, b
    1: devices 2,3, 1 x 2: a
    >>> placement.groups_of("a"), placement.num_devices
    ((0, 1), 4)
    """

    groups: tuple[Group, ...]

    @classmethod
    def equal_groups(
        cls, num_devices: int, configuration: Configuration, models: Iterable[Iterable[str]] = ()
    ) -> "Placement":
        """As many groups of one configuration as the devices allow, numbered from 0.

        Args:
            models: for each group its models; groups beyond the list host none.
        """
        size = configuration.num_devices
        hosted = [tuple(names) for names in models]
        count = num_devices // size
        check(len(hosted) <= count, "models", f"at most {count} groups", len(hosted))
        hosted += [()] * (count - len(hosted))
        devices = [tuple(range(at * size, (at + 1) * size)) for at in range(count)]
        return cls(tuple(Group(d, configuration, m) for d, m in zip(devices, hosted, strict=True)))

    @property
    def num_devices(self) -> int:
        """Different devices in use."""
        return len({device for group in self.groups for device in group.devices})

    @property
    def models(self) -> tuple[str, ...]:
        """Every hosted model, by name."""
        return tuple(sorted({model for group in self.groups for model in group.models}))

    def groups_of(self, model: str) -> tuple[int, ...]:
        """Indices of the groups that host it."""
        return tuple(i for i, group in enumerate(self.groups) if model in group.models)

    def hosting(self, model: str, group: int, kv_tokens: int = 0) -> "Placement":
        """The same placement with one more replica."""
        groups = list(self.groups)
        groups[group] = groups[group].hosting(model, kv_tokens)
        return Placement(tuple(groups))

    def beside(self, other: "Placement") -> "Placement":
        """The groups of both; ``other`` keeps its device numbers."""
        return Placement((*self.groups, *other.groups))

    def problems(
        self,
        profiles: Mapping[str, Profile],
        memory_bytes: int,
        num_devices: int | None = None,
    ) -> tuple[Problem, ...]:
        """What keeps it from being carried out; empty where nothing does.

        Args:
            profiles: of every hosted model, by its name.
            memory_bytes: what one device may hold.
            num_devices: of the cluster; None where any number will do.
        """
        return tuple(problems_of(self.groups, profiles, memory_bytes, num_devices))

    def __str__(self) -> str:
        return "\n".join(f"{i}: {group}" for i, group in enumerate(self.groups))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {"version": VERSION, "groups": [group.to_json() for group in self.groups]}

    @classmethod
    def from_json(cls, data: Any) -> "Placement":
        """
        Raises:
            ValueError: data that is no placement, or of another version.
        """
        hint = f'write "version": {VERSION} beside "groups"'
        named = not isinstance(data, Mapping) or "version" in data
        check(named, "placement version", VERSION, "none", hint)
        with reading("placement", data, ("version", "groups")):
            version, groups = data["version"], data["groups"]
            known = type(version) is int and version == VERSION
            check(known, "placement version", VERSION, repr(version), hint)
            check(isinstance(groups, list), "groups", "a list of groups", type(groups).__name__)
            found = [Group.from_json(group, f"groups[{at}]") for at, group in enumerate(groups)]
            return cls(tuple(found))

    def save(self, path: Path) -> None:
        """Write the placement as a JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Placement":
        """Read a placement file.

        Raises:
            ValueError: a file that is no JSON, or no placement.
        """
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise fail(f"placement file {path}", "JSON", error) from error
        return cls.from_json(data)
