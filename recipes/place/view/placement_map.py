"""``placement_map``: groups on the devices of nodes, and what every device holds, to scale."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from blocks.pipeline.view.scale import bytes_text
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Profile
from recipes.place.view.drawing import box, fitted, look, svg, text

WIDTH = 1120
_TALL, _HEAD, _GAP, _PAD, _MIN_WIDE, _MAX_WIDE = 176, 62, 6, 10, 44, 110


class Held(NamedTuple):
    """Bytes of one device: ``model`` is empty for activations, ``what`` says what they are."""

    model: str
    what: str
    bytes: int


def held(group: Group, profiles: Mapping[str, Profile], place: int) -> tuple[Held, ...]:
    """What the device at ``place`` in a group holds: weights of its stage, room for keys and
    values, and activations of the model that needs most."""
    found, activations = [], 0
    for model in group.models:
        timing = profiles[model].timing(group.configuration)
        stage = min(place // group.configuration.op, group.configuration.pp - 1)
        found.append(Held(model, "weights", timing.weight_bytes[stage]))
        kv_tokens = group.kv_tokens_of(model)
        if kv_tokens:
            what = f"keys and values of {kv_tokens:,} tokens"
            found.append(Held(model, what, kv_tokens * timing.kv_bytes_per_token))
        activations = max(activations, timing.activation_bytes)
    if activations:
        found.append(Held("", "activations", activations))
    return tuple(found)


def placement_map(
    placement: Placement,
    profiles: Mapping[str, Profile],
    memory_bytes: int,
    num_devices: int,
    devices_per_node: int,
) -> str:
    """A column a device, as tall as its memory; filled from below, keys and values lighter than
    weights. A frame around devices is a group; devices without a group stand empty."""
    owner = {
        device: (at, place)
        for at, group in enumerate(placement.groups)
        for place, device in enumerate(group.devices)
    }
    colours = {model: look(number) for number, model in enumerate(profiles)}
    num_nodes = -(-num_devices // devices_per_node)
    half = ((WIDTH - 16) / 2 - 2 * _PAD) / devices_per_node
    whole = (WIDTH - 2 * _PAD) / devices_per_node
    wide = min(_MAX_WIDE, half if num_nodes > 1 and half >= _MIN_WIDE else whole)
    node_width = devices_per_node * wide + 2 * _PAD
    beside = max(1, int((WIDTH + 16) / (node_width + 16)))
    tall = _HEAD + _TALL + 2 * _PAD
    parts: list[str] = []
    for node in range(num_nodes):
        row, column = divmod(node, beside)
        x, y = column * (node_width + 16), row * (tall + 14)
        devices = range(node * devices_per_node, min((node + 1) * devices_per_node, num_devices))
        frame = 'stroke="var(--line)"'
        parts.append(box(x + 0.5, y + 0.5, node_width - 1, tall - 1, "var(--paper)", "", frame))
        parts.append(text(x + _PAD, y + 18, f"node {node}", "muted"))
        for at, run in _runs(devices, owner):
            left = x + _PAD + (run[0] - devices[0]) * wide
            group = None if at is None else placement.groups[at]
            places = [owner[device][1] for device in run if device in owner]
            title = "idle" if group is None else f"group {at}: {group.configuration}"
            held_by = [] if group is None else [held(group, profiles, place) for place in places]
            parts += _run(left, y + 24, wide, title, run, held_by, memory_bytes, colours)
    rows = -(-num_nodes // beside)
    width = min(beside, num_nodes) * (node_width + 16) - 16
    height = rows * (tall + 14) - 14
    return svg(max(width, 240), height, parts, "models on the devices of the cluster")


def _runs(
    devices: Sequence[int], owner: Mapping[int, tuple[int, int]]
) -> Iterator[tuple[int | None, list[int]]]:
    """Neighbouring devices of one group; devices without one stand alone."""

    def key(device: int) -> tuple[int, int]:
        return (owner[device][0], 0) if device in owner else (-1, device)

    for (at, _), run in itertools.groupby(devices, key):
        yield (None if at < 0 else at), list(run)


def _run(
    x: float,
    y: float,
    wide: float,
    title: str,
    devices: Sequence[int],
    held_by: Sequence[tuple[Held, ...]],
    memory_bytes: int,
    colours: Mapping[str, tuple[str, float]],
) -> Iterator[str]:
    """Neighbouring devices of a group, or one that is idle: then nobody holds anything."""
    width = len(devices) * wide - _GAP
    top = y + _HEAD - 24
    names: list[str] = []
    yield text(x + 2, y + 14, fitted(title, width), "head" if held_by else "muted")
    for number, device in enumerate(devices):
        left = x + number * wide + 1
        free = f"device {device}: {bytes_text(float(memory_bytes))}"
        frame = 'stroke="var(--muted)" stroke-width="0.8"'
        yield text(left + (wide - _GAP) / 2, top - 4, str(device), "muted", "middle")
        yield box(left, top, wide - _GAP - 2, _TALL, "var(--card)", free, frame)
        bottom = top + _TALL
        for one in held_by[number] if held_by else ():
            height = one.bytes / memory_bytes * _TALL
            bottom -= height
            colour, shade = colours[one.model] if one.model else ("var(--muted)", 0.5)
            shade *= 1.0 if one.what == "weights" else 0.42
            name = f"{one.model}: " if one.model else ""
            tip = f"{name}{one.what}, {bytes_text(float(one.bytes))}; device {device}"
            more = f'fill-opacity="{shade:.2f}" stroke="var(--card)" stroke-width="0.7"'
            yield box(left + 0.5, bottom, wide - _GAP - 3, height, colour, tip, more)
            if number == 0 and height >= 11:
                words = one.model or one.what
                words += ": KV" if one.model and one.what != "weights" else ""
                names.append(text(left + 4, bottom + height / 2 + 4, fitted(words, width - 8)))
    yield from names  # over the columns that they reach across
    if held_by:
        outline = 'fill-opacity="0" stroke="var(--ink)" stroke-width="1.2"'
        yield box(x - 1.5, top - 17, width + 2, _TALL + 20, "none", "", outline)
