"""Traces as files of JSON lines: a header, a line for every event, a last line with a checksum.

One file may hold several traces, one after another: the steps of a run, or the ranks of a step.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blocks._checks import check, fail
from blocks.pipeline.action import Action
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.trace import UNMEASURED, Origin, Trace, TraceEvent, merge

FORMAT = "blocks.pipeline.trace"
VERSION = 1

_HEADER = {"format", "version", "schedule", "bounds", "meta", "losses", "origins"}
_REQUIRED = {"rank", "action", "start_ns", "end_ns"}
_OPTIONAL = {"cpu_ns": UNMEASURED, "live_bytes": UNMEASURED, "digest": ""}


def to_lines(trace: Trace) -> Iterator[str]:
    """The lines of one trace, without their ends."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "schedule": trace.schedule.to_json(),
        "bounds": trace.bounds,
        "meta": dict(trace.meta),
        "losses": trace.losses,
        "origins": {str(rank): origin for rank, origin in trace.origins.items()},
    }
    checksum = 0
    for record in (header, *map(_event_to_json, trace.events)):
        line = json.dumps(record, separators=(",", ":"))
        checksum = zlib.crc32(line.encode(), checksum)
        yield line
    yield json.dumps({"num_events": len(trace.events), "crc32": checksum}, separators=(",", ":"))


def _event_to_json(event: TraceEvent) -> dict[str, Any]:
    record = {**event._asdict(), "action": repr(event.action)}
    return {k: v for k, v in record.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}


def from_lines(lines: Iterable[str], name: str = "trace") -> list[Trace]:
    """The traces that ``to_lines`` wrote; ``name`` stands before what is wrong with others.

    Raises:
        ValueError: lines that are no traces, were cut off or changed, or are of a later version.
    """
    traces: list[Trace] = []
    reader: _Reader | None = None
    number = 0
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        text = line.removesuffix("\n")
        record = _parse(text, where)
        if reader is None:
            reader = _Reader(record, where)
            reader.checksum = zlib.crc32(text.encode())
        elif "num_events" in record:
            traces.append(reader.finish(record, where))
            reader = None
        else:
            reader.add(record, where)
            reader.checksum = zlib.crc32(text.encode(), reader.checksum)
    check(number > 0, name, "a trace", "an empty file")
    whole = reader is None
    check(whole, name, "a last line with num_events", f"an end after line {number}", "it was cut")
    return traces


class _Reader:
    """One trace, while its lines come in."""

    def __init__(self, header: dict[str, Any], where: str) -> None:
        known = header.get("format") == FORMAT
        check(known, where, f'a header with "format": "{FORMAT}"', sorted(header)[:8])
        version = header.get("version")
        hint = "it was written by another version of this library"
        check(version == VERSION, where, f"version {VERSION}", version, hint)
        check(set(header) == _HEADER, where, f"the keys {sorted(_HEADER)}", sorted(header))
        with _damage(where):
            self.schedule = Schedule.from_json(header["schedule"])
            origins = {int(rank): Origin(*given) for rank, given in header["origins"].items()}
            bounds = tuple(tuple(map(_whole, given)) for given in header["bounds"])
            losses = tuple(tuple(map(float, given)) for given in header["losses"])
            self.empty = Trace(self.schedule, bounds, (), dict(header["meta"]), losses, origins)
        self.events: list[TraceEvent] = []
        self.checksum = 0

    def add(self, record: dict[str, Any], where: str) -> None:
        keys = set(record)
        fits = keys >= _REQUIRED and keys <= _REQUIRED | set(_OPTIONAL)
        check(fits, where, f"an event with the keys {sorted(_REQUIRED)}", sorted(keys))
        with _damage(where):
            action = Action.parse(record["action"], 0)
            known = action.stage < self.schedule.num_stages
            check(known, f"stage of {action}", f"below {self.schedule.num_stages}", action.stage)
            action = action._replace(chunk=self.schedule.chunks[action.stage])
            digest = record.get("digest", "")
            check(isinstance(digest, str), "digest", "text", repr(digest))
            numbers = {k: _whole(v) for k, v in record.items() if k not in ("action", "digest")}
            self.events.append(TraceEvent(action=action, digest=digest, **numbers))

    def finish(self, record: dict[str, Any], where: str) -> Trace:
        expected = {"num_events": len(self.events), "crc32": self.checksum}
        check(record == expected, where, expected, record, "lines were lost or changed")
        with _damage(where):
            return dataclasses.replace(self.empty, events=tuple(self.events))


class _damage:
    """Names the line in whatever a reader of plain data raises over it."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError | TypeError | AttributeError | LookupError | OverflowError):
            raise ValueError(f"{self.where}: {error}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise fail(where, "a line of JSON", repr(text[:60]), "it is damaged or no trace") from error
    check(isinstance(record, dict), where, "an object", repr(text[:60]))
    return record


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise fail("number", "a whole one", repr(value))
    return value


def write_traces(path: str | os.PathLike[str], traces: Sequence[Trace]) -> None:
    """Write traces to a file, which appears whole or not at all.

    Raises:
        ValueError: no traces.
    """
    check(len(traces) > 0, "traces", "one or more", "none")
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for trace in traces:
                file.writelines(line + "\n" for line in to_lines(trace))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_traces(*paths: str | os.PathLike[str]) -> list[Trace]:
    """The traces of some files, one a step in order of steps: ranks of a step are merged.

    Raises:
        ValueError: a file that holds no traces or was changed, or traces that do not go together.
    """
    by_step: dict[object, list[Trace]] = {}
    for path in paths:
        try:
            with Path(path).open(encoding="utf-8", newline="\n") as file:
                found = from_lines(file, str(path))
        except UnicodeDecodeError as error:
            raise fail(str(path), "a text file of JSON lines", "other bytes") from error
        for trace in found:
            by_step.setdefault(trace.meta.get("step"), []).append(trace)
    steps = sorted(by_step, key=lambda step: step if isinstance(step, int) else -1)
    return [merge(by_step[step]) if len(by_step[step]) > 1 else by_step[step][0] for step in steps]
