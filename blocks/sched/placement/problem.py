"""What keeps a placement from being carried out, each with a name and by how much."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from blocks.sched.placement.group import Group
from blocks.sched.profile.profile import Profile


class Problem(NamedTuple):
    """One thing that does not fit.

    kind: ``memory``, ``devices``, ``shared device``, ``unknown device``, ``no profile``,
        ``no configuration``, ``hosted twice`` or ``kv_tokens``.
    group: index of the group; -1 where it is about no single one.
    text: what is wrong, with the numbers.
    shortfall: how much is missing: bytes a device for ``memory``, devices for ``devices``.
    """

    kind: str
    group: int
    text: str
    shortfall: int = 0

    def __str__(self) -> str:
        where = f"group {self.group}: " if self.group >= 0 else ""
        return f"{where}{self.kind}: {self.text}"


def group_bytes(group: Group, profiles: Mapping[str, Profile]) -> int:
    """Bytes the fullest device of a group may need: for each model its largest stage and its
    key-value room, and activations of the one model that needs most, as one runs at a time.

    Raises:
        ValueError, KeyError: a model without profile, or without this configuration.
    """
    weights, activations = 0, 0
    for index, model in enumerate(group.models):
        timing = profiles[model].timing(group.configuration)
        kv_tokens = group.kv_tokens[index] if group.kv_tokens else 0
        weights += timing.device_bytes(kv_tokens) - timing.activation_bytes
        activations = max(activations, timing.activation_bytes)
    return weights + activations


def problems_of(
    groups: Sequence[Group],
    profiles: Mapping[str, Profile],
    memory_bytes: int,
    num_devices: int | None = None,
) -> Iterator[Problem]:
    """Everything that is wrong; see ``Placement.problems``."""
    owners: dict[int, list[int]] = collections.defaultdict(list)
    for index, group in enumerate(groups):
        for device in group.devices:
            owners[device].append(index)
        yield from _of_group(index, group, profiles, memory_bytes)
    for device, found in sorted(owners.items()):
        if len(found) > 1:
            text = f"device {device} is in groups {', '.join(map(str, found))}"
            yield Problem("shared device", -1, text)
        if device < 0 or (num_devices is not None and device >= num_devices):
            text = f"device {device} of group {found[0]}, the cluster has {num_devices}"
            yield Problem("unknown device", found[0], text)


def _of_group(
    index: int, group: Group, profiles: Mapping[str, Profile], memory_bytes: int
) -> Iterator[Problem]:
    short = group.configuration.num_devices - len(group.devices)
    if short:
        text = f"{group.configuration} takes {group.configuration.num_devices}, "
        yield Problem("devices", index, text + f"it has {len(group.devices)}", short)
    if group.kv_tokens and len(group.kv_tokens) != len(group.models):
        text = f"{len(group.kv_tokens)} rooms for {len(group.models)} models"
        yield Problem("kv_tokens", index, text)
        return
    known = True
    for model, count in collections.Counter(group.models).items():
        if count > 1:
            yield Problem("hosted twice", index, f"{model}, {count} times")
        if model not in profiles:
            known = False
            yield Problem("no profile", index, model)
        elif profiles[model].find(group.configuration) is None:
            known = False
            yield Problem("no configuration", index, f"{model} in {group.configuration}")
    needed = group_bytes(group, profiles) if known else 0
    if needed > memory_bytes:
        text = f"{needed:,} bytes a device for {len(group.models)} models, {memory_bytes:,} there"
        yield Problem("memory", index, text, needed - memory_bytes)
