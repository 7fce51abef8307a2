"""From measured seconds to a profile: what else it has to say of a configuration."""

import dataclasses
from collections.abc import Mapping, Sequence

from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from recipes.model import ModelConfig
from recipes.place.group.footprint import block_bytes, weight_bytes
from recipes.place.group.spec import GroupSpec
from recipes.place.measure.machine import machine_line, processor
from recipes.place.measure.points import Points
from recipes.serve.parallel import Layout

Point = tuple[int, int]
"""A prompt's tokens and 0, or a decode step's batch and context."""


def spec_of(limits: GroupSpec, one: Configuration) -> GroupSpec:
    """A group of that configuration, whose steps follow one another."""
    devices = tuple(range(one.num_devices))
    return dataclasses.replace(limits, tp=one.op, pp=one.pp, devices=devices, pp_batches=1)


def timing_of(
    model: ModelConfig,
    limits: GroupSpec,
    one: Configuration,
    points: Points,
    seconds: Mapping[Point, float],
    activation_bytes: int = 0,
) -> Timing:
    """Seconds of whole steps, divided over stages by their layers, and bytes by sizes."""
    spec = spec_of(limits, one)
    weights = weight_bytes(model, spec)
    layers = [len(held) for held in Layout(one.op, one.pp).layers(model)]

    def stages(point: Point) -> tuple[float, ...]:
        return tuple(seconds[point] * count / sum(layers) for count in layers)

    return Timing(
        one,
        tuple(max(weights[at : at + one.op]) for at in range(0, len(weights), one.op)),
        activation_bytes,
        kv_bytes_per_token=max(block_bytes(model, spec)) // spec.block_size,
        prefill=tuple(PrefillTime(tokens, stages((tokens, 0))) for tokens in points.prefill),
        decode=tuple(DecodeTime(*point, stages(point)) for point in points.decodes()),
    )


def measured(name: str, limits: GroupSpec, timings: Sequence[Timing], how: str) -> Profile:
    """A profile of what was measured here and now."""
    lines = (Provenance("measured", machine_line(limits.num_threads)), Provenance("note", how))
    if any(timing.configuration.pp > 1 for timing in timings):
        text = "steps of several stages were timed whole; stages have their layers' share of them"
        lines += (Provenance("note", text),)
    threads = "1 thread" if limits.num_threads == 1 else f"{limits.num_threads} threads"
    return Profile(name, f"{processor()}, {threads}", lines, tuple(timings))
