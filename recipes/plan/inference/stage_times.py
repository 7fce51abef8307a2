"""``staged``: layers cut into stages, the slowest of which is as fast as can be. Needs numpy."""

from collections.abc import Iterator, Mapping, Sequence

from blocks.pipeline import partition_inference
from blocks.pipeline.inter_op import LayerSums
from blocks.pipeline.inter_op.submesh import SubmeshShape
from blocks.sharding import Cluster
from recipes.plan.inference.forward_graph import COPY
from recipes.plan.inference.op_mesh import LayerTime
from recipes.plan.inference.plan import Configuration, Overheads, Passes, ServedStage

Times = Mapping[tuple[str, int, int], Sequence[float]]
"""Seconds of every layer by kind, size and context of a pass."""
Sent = Mapping[tuple[str, int, int], Sequence[float]]
"""Bytes over every bound between layers, likewise."""


def cut_layers(
    layers: Sequence[LayerTime], seconds: Sequence[float], op: int, pp: int, memory_bytes: float
) -> list[tuple[int, int]]:
    """(first, stop) of the layers of every stage: the partition whose slowest stage is fastest.

    Args:
        seconds: of every layer.
        memory_bytes: of a device.

    Raises:
        DoesNotFit: weights that are more than the memory.
    """
    shape = SubmeshShape(1, op)
    held = [float(sum(layer.weight_bytes.values())) for layer in layers]
    transient = [max(layer.transient_bytes.values()) for layer in layers]
    sums = LayerSums(
        (shape,),
        ("only",),
        {
            "forward_s": [[[one]] for one in seconds],
            "fixed_bytes": [[[one]] for one in held],
            "transient_bytes": [[[one]] for one in transient],
        },
    )
    table = sums.at(range(len(layers) + 1))
    for low, high, size in _held_twice(layers):
        table.cells["fixed_bytes"][: low + 1, high + 1 :] -= size
    found = partition_inference(
        table, 1, op * pp, num_stages=pp, memory_cap_bytes=memory_bytes, idle_devices=True
    )
    return [(stage.first, stage.stop) for stage in found.stages]


def staged(
    layers: Sequence[LayerTime],
    times: Times,
    sent: Sent,
    cluster: Cluster,
    op: int,
    cuts: Sequence[tuple[int, int]],
) -> Configuration:
    """The stages of a cut, and what they take.

    Args:
        sent: bytes of which every device of a stage sends its share to one of the next.
    """
    pp = len(cuts)
    passes = []
    for key, seconds in times.items():
        sums = [sum(seconds[first:stop]) for first, stop in cuts]
        for at, (_, stop) in enumerate(cuts[:-1]):
            sums[at] += _send_s(cluster, sent[key][stop] / op, (at + 1) * op)
        passes.append(Passes(*key, tuple(sums)))
    first, base = passes[0], next(iter(times.values()))
    latency, alone = first.latency_s, sum(base)
    smallest = first.size
    overheads = Overheads(
        sum(layer.collective_s[smallest] for layer in layers),
        max(latency - alone, 0.0),
        max(pp * first.slowest_s - latency, 0.0),
    )
    stages = tuple(
        ServedStage(
            begin,
            stop,
            _weight_bytes(layers[begin:stop]),
            round(sum(layer.kv_bytes for layer in layers[begin:stop])),
        )
        for begin, stop in cuts
    )
    transient = max(max(layer.transient_bytes.values()) for layer in layers)
    placements = {
        name: text for layer in layers for name, text in layer.placements.items() if text.strip("R")
    }
    return Configuration(op, pp, stages, tuple(passes), round(transient), overheads, placements)


def _held_twice(layers: Sequence[LayerTime]) -> Iterator[tuple[int, int, int]]:
    """The lower and the higher layer of parameters that two layers read, and their bytes."""
    at = {name: number for number, layer in enumerate(layers) for name in layer.weight_bytes}
    for name, number in at.items():
        first = at.get(name.removesuffix(COPY)) if name.endswith(COPY) else None
        if first is not None:
            low, high = sorted((first, number))
            yield low, high, layers[number].weight_bytes[name]


def _weight_bytes(layers: Sequence[LayerTime]) -> int:
    """A parameter that two layers of a stage read is there once."""
    total, here = 0, {name for layer in layers for name in layer.weight_bytes}
    for layer in layers:
        for name, size in layer.weight_bytes.items():
            again = name.endswith(COPY) and name.removesuffix(COPY) in here
            total += 0 if again else size
    return total


def _send_s(cluster: Cluster, num_bytes: float, device: int) -> float:
    """To the stage that begins at a device, from the one before it."""
    per_node = cluster.nodes[0].num_devices
    inside = device % per_node != 0 or len(cluster.nodes) == 1
    link = cluster.link(cluster.nodes[0].link if inside else cluster.between)
    return link.seconds("send", num_bytes, 2) if num_bytes else 0.0
