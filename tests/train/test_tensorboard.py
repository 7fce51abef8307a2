import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.train import read_log, tiny, train
from recipes.train.log import LogEntry
from recipes.train.tensorboard import TensorBoardLog
from tests.train.test_log import ENTRY

# What tensorboard 2.21 itself writes for these two events.
VERSION = "1800000000000000a37f4b22090000000000448f401a0d627261696e2e4576656e743a32aba33345"
LOSS = (
    "2100000000000000017becf6090000000000448f4010ac022a130a110a0a747261696e2f6c6f7373150000c03f"
    "4aa3fc78"
)


@dataclasses.dataclass(frozen=True)
class OneNumber:
    """A log entry cut down to the loss."""

    step: int
    loss: float


def test_the_bytes_are_those_of_the_tensorboard_package(tmp_path):
    log = TensorBoardLog(tmp_path, after_step=0, clock=lambda: 1000.5)
    log.write(OneNumber(300, 1.5))  # type: ignore[arg-type]
    assert log.path.read_bytes().hex() == VERSION + LOSS


def fields(data: bytes) -> list[tuple[int, Any]]:
    """The fields of a protocol buffer message, in order; nested messages as bytes."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        field, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            found.append((field, varint()))
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        raw, at = data[at : at + size], at + size
        code = {1: "<d", 5: "<f"}.get(wire_type)
        found.append((field, struct.unpack(code, raw)[0] if code else raw))
    return found


def read(path) -> list[dict]:
    """Events of a file: step, start of a session, scalars by name."""
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = dict(fields(data[at + 12 : at + 12 + length]))
        at += 16 + length
        scalars = {}
        for _, value in fields(event.get(5, b"")):
            name, number = (content for _, content in fields(value))
            scalars[name.decode()] = number
        events.append({"step": event.get(2, 0), "start": event.get(7), "scalars": scalars})
    return events


def single(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


@given(
    step=st.integers(0, 2**40),
    loss=st.floats(width=32, allow_nan=False),
    num_tokens=st.integers(0, 2**45),
    looked=st.booleans(),
)
def test_every_number_of_an_entry_is_a_scalar(tmp_path_factory, step, loss, num_tokens, looked):
    entry = dataclasses.replace(
        ENTRY,
        step=step,
        loss=loss,
        num_tokens=num_tokens,
        held_out_loss=2.5 if looked else None,
    )
    log = TensorBoardLog(tmp_path_factory.mktemp("events"), after_step=0)
    log.write(entry)
    event = read(log.path)[-1]
    assert event["step"] == step
    names = {field.name for field in dataclasses.fields(LogEntry)} - {"step", "num_steps"}
    names -= set() if looked else {"held_out_loss"}
    assert event["scalars"] == {f"train/{name}": single(getattr(entry, name)) for name in names}


def test_what_came_after_the_step_gone_on_from_is_dropped_by_a_reader(tmp_path):
    first = TensorBoardLog(tmp_path, after_step=0)
    again = TensorBoardLog(tmp_path, after_step=7)
    assert first.path != again.path
    assert sorted([first.path, again.path]) == [first.path, again.path]
    assert [event["start"] for event in read(first.path)] == [None]
    events = read(again.path)
    assert [event["step"] for event in events] == [0, 8]
    assert events[1]["start"] == b"\x08\x01"


def test_a_run_writes_its_log_for_tensorboard_too(tmp_path):
    config = dataclasses.replace(tiny(), max_corpus_bytes=60_000, num_steps=4, log_every=2)
    train(dataclasses.replace(config, tensorboard=True), out=tmp_path)
    (path,) = (tmp_path / "tensorboard").iterdir()
    entries = read_log(tmp_path / "log.jsonl")
    events = read(path)[1:]
    assert [event["step"] for event in events] == [entry["step"] for entry in entries] == [1, 2, 4]
    for event, entry in zip(events, entries, strict=True):
        assert event["scalars"]["train/loss"] == single(entry["loss"])
    train(config, out=tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        TensorBoardLog(tmp_path / "file", after_step=0)
