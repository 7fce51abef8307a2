"""Trace files: they bring back what was written, and refuse what was not."""

import contextlib
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import read_traces, write_traces
from blocks.pipeline.trace_file import from_lines, to_lines
from tests.pipeline.test_trace import of_rank
from tests.pipeline.traces import Maker, chain, made_up, makers


@given(st.lists(makers(), min_size=1, max_size=3))
def test_lines_bring_the_traces_back(makes: list[Maker]) -> None:
    some = [make() for make in makes]
    lines = [line for trace in some for line in to_lines(trace)]
    assert from_lines(lines) == some
    assert from_lines(line + "\n" for line in lines) == some


@given(makers(), st.data())
def test_any_changed_byte_is_refused(make: Maker, data: st.DataObject) -> None:
    trace = make()
    whole = "".join(line + "\n" for line in to_lines(trace)).encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    other = bytes([whole[at] ^ data.draw(st.integers(1, 127))])
    changed = whole[:at] + other + whole[at + 1 :]
    with pytest.raises(ValueError, match="trace, line"):
        from_lines(changed.decode().split("\n")[: whole.count(b"\n")])


@given(makers(), st.data())
def test_a_cut_file_is_refused(make: Maker, data: st.DataObject) -> None:
    trace = make()
    whole = "".join(line + "\n" for line in to_lines(trace))
    cut = whole[: data.draw(st.integers(0, len(whole) - 2))]
    with pytest.raises(ValueError, match=r"an empty file|it was cut|damaged"):
        from_lines(cut.splitlines())


def test_lost_lines_are_refused() -> None:
    lines = list(to_lines(made_up(chain(2, (2,)), 0)))
    for missing in range(1, len(lines) - 1):
        with pytest.raises(ValueError, match=r"lines were lost or changed|start after"):
            from_lines(lines[:missing] + lines[missing + 1 :])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "some.jsonl: expected a trace, got an empty file"),
        ("hello\n", "line 1: expected a line of JSON, got 'hello'; it is damaged or no trace"),
        ("[1]\n", "line 1: expected an object"),
        ('{"traceEvents": []}\n', 'line 1: expected a header with "format": "blocks.pipeline.tr'),
        (b"\xff\xfe\x00", "some.jsonl: expected a text file of JSON lines, got other bytes"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=said):
        read_traces(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "expected version 1, got 99; it was written by another version"),
        ({"extra": 1}, "expected the keys"),
        ({"bounds": [[0, "x"]]}, "number: expected a whole one, got 'x'"),
        ({"schedule": {}}, "schedule: expected the keys"),
        ({"origins": {"0": [1]}}, "line 1: "),
        ({"losses": 3}, "line 1: "),
    ],
)
def test_headers_that_do_not_fit(change: dict, said: str) -> None:
    lines = list(to_lines(made_up(chain(1, (1,)), 0)))
    with pytest.raises(ValueError, match=said):
        from_lines([json.dumps({**json.loads(lines[0]), **change}), *lines[1:]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": "F7(0,0)"}, "line 2: stage of F7"),
        ({"action": 3}, "line 2: "),
        ({"start_ns": 0.5}, "line 2: number: expected a whole one, got 0.5"),
        ({"digest": 7}, "line 2: digest: expected text, got 7"),
        ({"colour": "red"}, "line 2: expected an event with the keys"),
    ],
)
def test_events_that_do_not_fit(change: dict, said: str) -> None:
    lines = list(to_lines(made_up(chain(1, (1,)), 0)))
    with pytest.raises(ValueError, match=said):
        from_lines([lines[0], json.dumps({**json.loads(lines[1]), **change}), *lines[2:]])


def test_files_of_ranks_become_steps(tmp_path: Path) -> None:
    steps = [made_up(chain(3, (2, 1)), seed, step=seed) for seed in range(3)]
    for rank in range(3):
        parts = [of_rank(trace, rank, trace.origins[rank]) for trace in reversed(steps)]
        write_traces(tmp_path / f"rank{rank}.jsonl", parts)
    found = read_traces(*sorted(tmp_path.iterdir()))
    assert [trace.events for trace in found] == [trace.events for trace in steps]
    assert [trace.losses for trace in found] == [trace.losses for trace in steps]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = made_up(chain(2, (2,)), 0)
    write_traces(path, [good])
    bad = made_up(chain(2, (2,)), 1)
    object.__setattr__(bad, "meta", {"step": object()})
    with pytest.raises(TypeError):
        write_traces(path, [good, bad])
    assert read_traces(path) == [good]
    assert [found.name for found in tmp_path.iterdir()] == ["trace.jsonl"]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.data())
def test_whatever_stands_in_a_line_only_value_errors_come_of_it(data: st.DataObject) -> None:
    """Also where the rest of the file is fine, checksum included."""
    records = [json.loads(line) for line in to_lines(made_up(chain(2, (2, 1)), 0))]
    record = records[data.draw(st.integers(0, len(records) - 2))]
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(ANY_JSON)
    lines = [json.dumps(record, separators=(",", ":")) for record in records[:-1]]
    checksum = 0
    for line in lines:
        checksum = zlib.crc32(line.encode(), checksum)
    lines.append(json.dumps({"num_events": len(lines) - 1, "crc32": checksum}))
    with contextlib.suppress(ValueError):
        from_lines(lines)
