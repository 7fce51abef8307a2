"""Profiles of models that generate, worked out from what a device computes, reads and sends."""

from collections.abc import Iterable
from typing import NamedTuple

from blocks._checks import check_count, check_positive
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.profile import Profile, Provenance
from blocks.sched.profile.timing import DecodeTime, PrefillTime, Timing

TOKENS = (1, 64, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (1, 512, 2048, 8192)


class Decoder(NamedTuple):
    """A decoder's size.

    num_params: that every token is multiplied with.
    num_layers, hidden_size: as named.
    kv_bytes_per_token: keys and values of a token in all layers.
    bytes_per_param: of the weights as they are read.
    """

    num_params: float
    num_layers: int
    hidden_size: int
    kv_bytes_per_token: int
    bytes_per_param: float = 2.0


class Device(NamedTuple):
    """What a device reaches, not what it could do at its peak.

    name: of its kind.
    flops: multiplications and additions a second of large products.
    bytes_per_s: read from memory.
    link_bytes_per_s, link_s: sent to another device of the group, and seconds before the first
        byte; an all-reduce sends twice its bytes.
    step_s: of every step, whatever it computes.
    """

    name: str
    flops: float
    bytes_per_s: float
    link_bytes_per_s: float
    link_s: float
    step_s: float


def roofline_profile(
    model: str, size: Decoder, device: Device, configurations: Iterable[tuple[int, int]]
) -> Profile:
    """A profile in which every step takes the longer of its arithmetic and its reading.

    Products are cut over ``op`` devices, with two all-reduces a layer; layers over ``pp`` stages,
    with one message between two of them.

    >>> size = Decoder(8e9, 32, 4096, 131072)
    >>> device = Device("GPU", 5e14, 2.5e12, 3e11, 1e-5, 1e-3)
    >>> profile = roofline_profile("8B", size, device, [(1, 1), (2, 1)])
    >>> [round(1e3 * t.decode_s(1, 1)[0], 1) for t in profile.timings]
    [7.4, 4.8]

    Reference: Williams, Waterman and Patterson, Roofline, 2009.
    """
    for name, value in (*size._asdict().items(), *device._asdict().items()):
        if name != "name":
            check_positive(name, value)
    for name in ("num_layers", "hidden_size", "kv_bytes_per_token"):
        check_count(name, getattr(size, name))
    timings = []
    for degrees in sorted(configurations):
        configuration = Configuration(*degrees).checked()
        op, pp = configuration
        weights = round(size.num_params * size.bytes_per_param / (op * pp))

        def stages(
            num_tokens: int, cached: int, pairs: float | int, op: int = op, pp: int = pp
        ) -> tuple[float, ...]:
            whole_s = _step_s(size, device, op, num_tokens, cached, pairs)
            return _stages(whole_s, num_tokens, size, device, pp)

        prefill = [PrefillTime(n, stages(n, 0, n * n / 2)) for n in TOKENS]
        decode = [DecodeTime(b, c, stages(b, b * c, b * c)) for b in BATCHES for c in CONTEXTS]
        timings.append(
            Timing(
                configuration,
                (weights,) * pp,
                kv_bytes_per_token=-(-size.kv_bytes_per_token // (op * pp)),
                prefill=tuple(prefill),
                decode=tuple(decode),
            )
        )
    told = (
        f"a roofline: {size.num_params:g} parameters of {size.bytes_per_param:g} bytes, "
        f"{size.num_layers} layers of {size.hidden_size}, {size.kv_bytes_per_token} bytes a token; "
        f"{device.flops:g} FLOP/s, {device.bytes_per_s:g} B/s, links of "
        f"{device.link_bytes_per_s:g} B/s and {device.link_s:g} s, {device.step_s:g} s a step"
    )
    return Profile(model, device.name, (Provenance("simulated", told),), tuple(timings))


def _step_s(
    size: Decoder, device: Device, op: int, num_tokens: int, cached: int, pairs: float | int
) -> float:
    """Seconds of all layers: ``cached`` tokens are read, ``pairs`` of tokens attend."""
    attention = 4 * size.num_layers * size.hidden_size * pairs
    arithmetic_s = (2 * size.num_params * num_tokens + attention) / (op * device.flops)
    read = size.num_params * size.bytes_per_param + cached * size.kv_bytes_per_token
    reading_s = read / (op * device.bytes_per_s)
    reduce_s = 0.0
    if op > 1:
        sent = 2 * (op - 1) / op * num_tokens * size.hidden_size * size.bytes_per_param
        reduce_s = 2 * size.num_layers * (device.link_s + sent / device.link_bytes_per_s)
    return max(arithmetic_s, reading_s) + reduce_s


def _stages(
    whole_s: float, num_tokens: int, size: Decoder, device: Device, pp: int
) -> tuple[float, ...]:
    """Even stages; all but the last also send what they computed."""
    sent = num_tokens * size.hidden_size * size.bytes_per_param
    send_s = device.link_s + sent / device.link_bytes_per_s
    each_s = whole_s / pp + device.step_s
    return (*((each_s + send_s,) * (pp - 1)), each_s)
