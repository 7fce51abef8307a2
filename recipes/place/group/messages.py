"""What the front door and a group tell each other: typed, decoded strictly, never pickled."""

import math
from typing import Literal

import msgspec

from recipes.place.group.frames import MAX_FRAME_BYTES, GarbledFrame, frame
from recipes.place.group.replica import Loaded, Replica
from recipes.place.group.state import GroupState
from recipes.serve.job import Job
from recipes.serve.outputs import Delta


class Host(msgspec.Struct, frozen=True, tag=True):
    """Host a model; answered by ``Now`` or ``Refused``."""

    number: int
    replica: Replica


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Take no more work for a model, answer what was taken, and give its memory back.

    drain_s: seconds for that; what still runs then ends with an error. None: all it takes.
    """

    number: int
    model: str
    drain_s: float | None


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Queue jobs, all or none; answered by ``Done`` or ``Refused``, then by ``Deltas``.

    ttft_s: seconds from now in which the first token is wanted. tpot_s: seconds for each after it.
    """

    number: int
    model: str
    jobs: list[Job]
    ttft_s: float = math.inf
    tpot_s: float = math.inf


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget jobs; no delta of theirs is made any more."""

    model: str
    request_ids: list[str]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End at once."""


class Up(msgspec.Struct, frozen=True, tag=True):
    """The group can be asked to load models. pid: of its process."""

    pid: int


class Now(msgspec.Struct, frozen=True, tag=True):
    """A model is served from now on."""

    number: int
    loaded: Loaded


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked has happened."""

    number: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """What was asked has not happened, and the group goes on.

    kind: which error to raise. numbers: of a ``ContextTooLong`` limit, prompt and wanted.
    """

    number: int
    kind: Literal["load", "not_hosted", "queue_full", "too_long", "value", "internal"]
    text: str
    numbers: tuple[int, int, int | None] | None = None


class Deltas(msgspec.Struct, frozen=True, tag=True):
    """What a step of a model's engine has made."""

    deltas: list[Delta]


class Beat(msgspec.Struct, frozen=True, tag=True):
    """How the group is."""

    state: GroupState


Order = Host | Unload | Submit | Cancel | Stop
Report = Up | Now | Done | Refused | Deltas | Beat

_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Order).decode
_decode_report = msgspec.msgpack.Decoder(Report).decode


def order_frame(order: Order) -> bytes:
    """
    Raises:
        ValueError: text that is no Unicode, or more than a frame may hold.
    """
    return frame(_encode(order))


def report_frames(report: Report, max_bytes: int = MAX_FRAME_BYTES) -> list[bytes]:
    """A report as frames: deltas that are too many for one travel in several.

    A single delta that no frame holds ends its sample with an error.
    """
    payload = _encode(report)
    if len(payload) <= max_bytes:
        return [frame(payload, max_bytes)]
    assert isinstance(report, Deltas), f"{type(report).__name__} of {len(payload)} bytes"
    deltas = report.deltas
    if len(deltas) == 1:
        text = f"the answer's next part has {len(payload)} bytes, more than can be passed on"
        over = Delta(deltas[0].request_id, deltas[0].index, [], "")
        over.finish_reason, over.error = "error", text
        return report_frames(Deltas([over]), max(max_bytes, 4096))
    half = len(deltas) // 2
    return [
        *report_frames(Deltas(deltas[:half]), max_bytes),
        *report_frames(Deltas(deltas[half:]), max_bytes),
    ]


def read_order(payload: bytes) -> Order:
    """
    Raises:
        GarbledFrame: it is no order.
    """
    try:
        return _decode_order(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise GarbledFrame(f"expected an order, got {payload[:40]!r}: {error}") from None


def read_report(payload: bytes) -> Report:
    """
    Raises:
        GarbledFrame: it is no report.
    """
    try:
        return _decode_report(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise GarbledFrame(f"expected a report, got {payload[:40]!r}: {error}") from None
