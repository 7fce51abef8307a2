"""Why there is no plan: which limit is hit, where, by how much, what would lift it. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from blocks._checks import check, fail
from blocks.pipeline.inter_op import DoesNotFit, Shortage, SubmeshShape
from blocks.pipeline.view.scale import bytes_text
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.model import is_factory


class Held(NamedTuple):
    """What a device holds of its stage.

    fixed_bytes: parameters, gradients, optimizer. microbatch_bytes: of one of ``in_flight``.
    transient_bytes: while one is computed.
    """

    fixed_bytes: float
    microbatch_bytes: float
    in_flight: int
    transient_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.fixed_bytes + self.transient_bytes + self.microbatch_bytes * self.in_flight

    def __str__(self) -> str:
        return (
            f"{bytes_text(self.fixed_bytes)} of parameters, gradients and optimizer state, "
            f"{bytes_text(self.microbatch_bytes * self.in_flight)} for "
            f"{_number(self.in_flight, 'microbatch')} in flight, "
            f"{bytes_text(self.transient_bytes)} while one is computed"
        )


def too_little_memory(
    cap_bytes: float, where: str, held: Held, ways: Iterable[str] = ()
) -> ValueError:
    """
    Args:
        where: the stage.
        ways: out of it.
    """
    short = bytes_text(held.total_bytes - cap_bytes)
    hint = f"{short} too few {where}, which holds {held}"
    if ways := [*ways]:
        hint += "; " + " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
    return fail("memory of a device", bytes_text(held.total_bytes), bytes_text(cap_bytes), hint)


def no_plan(error: DoesNotFit, cluster: Cluster, config: PlanConfig) -> ValueError:
    """What a user reads where the partition found nothing, from what it said."""
    short = error.shortage
    if short is None:
        expected = f"some that together use all {cluster.num_devices} devices"
        hint = "lift pins, max_stages or max_stage_devices, or set idle_devices=True"
        return fail("stages", expected, "none", hint)
    devices = short.shape._replace(kind=short.shape.kind or _used(cluster)[0])
    last = short.stop - 1
    layers = f"layers {short.first}-{last}" if last > short.first else f"layer {last}"
    where = (
        f"for stage {short.stage} of {short.num_stages} ({layers} on {devices}) in the plan that "
        f"needs least ({short.schedule}, {_number(short.num_microbatches, 'microbatch')})"
    )
    held = Held(short.fixed_bytes, short.microbatch_bytes, short.in_flight, short.transient_bytes)
    return too_little_memory(short.cap_bytes, where, held, _ways(short, cluster, config))


def _ways(short: Shortage, cluster: Cluster, config: PlanConfig) -> Iterator[str]:
    """What would make room: for what passes, if that is most of it, else for what stays."""
    passing = short.needed_bytes - short.fixed_bytes
    rows = config.batch_size // short.num_microbatches
    if short.fixed_bytes < short.cap_bytes or passing > short.fixed_bytes:
        if config.recompute is False:
            yield "allow recompute"
        if config.num_microbatches is not None and rows > 1:
            yield f"raise num_microbatches={config.num_microbatches}"
        if short.in_flight > 1 and "one_f_one_b" not in config.schedules.split(","):
            yield "allow schedules=one_f_one_b"
        smaller = ["seq_len"] * (not is_factory(config.model)) + ["batch_size"] * (rows > 1)
        if smaller:  # a factory has a length of its own
            yield f"lower {' or '.join(smaller)}"
    for name in ("max_stages", "max_stage_devices", "memory_gib"):
        if (value := getattr(config, name)) is not None:
            yield f"raise {name}={value:g}"
    if config.pins:
        yield "lift pins"
    if len(_used(cluster)) > 1 and not config.idle_devices:
        yield "leave devices out with idle_devices=True"
    yield "use more devices (num_nodes, num_devices)"


def check_devices(
    shapes: Sequence[SubmeshShape], cluster: Cluster, config: PlanConfig, num_layers: int
) -> None:
    """Whether so many stages as there may be can together use all devices, if they must.

    Args:
        shapes: that a stage may have.

    Raises:
        ValueError: they cannot; says how many stages it takes.
    """
    if config.idle_devices:
        return
    fewest = 0
    for kind in _used(cluster):
        size = sum(node.num_devices for node in cluster.nodes if node.kind == kind)
        fewest += _fewest(size, {shape.size for shape in shapes if shape.kind in ("", kind)})
    most = min(num_layers, config.max_stages or num_layers)
    largest, hints = max(shape.size for shape in shapes), []
    why = "one for each layer" if most == num_layers else f"max_stages={most}"
    if most < min(fewest, num_layers):
        hints.append(f"raise max_stages={most}")
    if config.max_stage_devices is not None:
        hints.append(f"raise max_stage_devices={config.max_stage_devices}")
    hint = ", ".join([*hints, "plan for fewer devices"]) + " or set idle_devices=True"
    kinds = " of one kind" if len(_used(cluster)) > 1 else ""
    expected = (
        f"{fewest} or more to use all {cluster.num_devices} devices, at most "
        f"{_number(largest, 'device')}{kinds} in each"
    )
    check(most >= fewest, "stages", expected, f"at most {most}, {why}", hint)


def _fewest(total: int, sizes: set[int]) -> int:
    """Numbers of ``sizes``, one of which is 1, that add up to the total.

    >>> _fewest(6, {1, 2, 4}), _fewest(12, {1, 2, 6})
    (2, 2)
    """
    fewest = [0]
    for at in range(1, total + 1):
        fewest.append(1 + min(fewest[at - size] for size in sizes if size <= at))
    return fewest[total]


def _used(cluster: Cluster) -> list[str]:
    return [*dict.fromkeys(node.kind for node in cluster.nodes)]


def _number(count: int, of: str) -> str:
    """
    >>> _number(1, "microbatch"), _number(2, "microbatch"), _number(3, "device")
    ('1 microbatch', '2 microbatches', '3 devices')
    """
    plural = "es" if of.endswith("ch") else "s"
    return f"{count} {of}{plural if count > 1 else ''}"
