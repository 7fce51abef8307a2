"""Frames survive any cutting of the stream; what is no frame is refused; keys are proved."""

import dataclasses
import itertools
import queue
import select
import threading

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from recipes.place.group import GroupSpec, proof
from recipes.place.group.frames import Frames, GarbledFrame, frame
from recipes.place.group.inbox import Inbox
from recipes.place.group.messages import (
    Deltas,
    Submit,
    Unload,
    order_frame,
    read_order,
    read_report,
    report_frames,
)
from recipes.serve import Job, SamplingParams
from recipes.serve.outputs import Delta, TokenLogprob

PAYLOADS = st.lists(st.binary(max_size=40), max_size=8)


def cut(data: bytes, ends: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(end, len(data)) for end in ends), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(PAYLOADS, st.lists(st.integers(0, 400), max_size=12))
def test_any_cutting_of_the_stream_gives_the_frames(payloads, ends):
    frames, found = Frames(), []
    for piece in cut(b"".join(map(frame, payloads)), ends):
        found += frames.feed(piece)
    assert found == payloads
    assert frames.is_empty


@given(PAYLOADS, st.integers(1, 30))
def test_a_stream_that_breaks_off_gives_the_whole_frames_only(payloads, missing):
    data = b"".join(map(frame, payloads))
    frames = Frames()
    found = frames.feed(data[: max(0, len(data) - missing)])
    assert found == payloads[: len(found)]
    assert len(found) < len(payloads) or not payloads


@given(st.integers(0, 50), st.integers(0, 50))
def test_longer_frames_than_the_limit_are_neither_made_nor_read(size, limit):
    if size <= limit:
        assert Frames(limit).feed(frame(bytes(size), limit)) == [bytes(size)]
        return
    with pytest.raises(ValueError, match=f"at most {limit} bytes"):
        frame(bytes(size), limit)
    with pytest.raises(GarbledFrame, match=f"at most {limit} bytes"):
        Frames(limit).feed(frame(bytes(size))[:4])  # before the payload has arrived


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused_as_such(payload):
    for read in (read_order, read_report):
        try:
            read(payload)
        except GarbledFrame:
            continue
        raise AssertionError("random bytes were taken for a message")


floats = st.floats(-50, 0)
scored = st.builds(
    TokenLogprob,
    st.integers(0, 99),
    floats,
    st.lists(st.tuples(st.integers(0, 9), floats), max_size=3),
)
deltas = st.builds(
    Delta,
    st.text(max_size=5),
    st.integers(0, 127),
    st.lists(st.integers(0, 2**31)),
    st.text(max_size=20),
    logprobs=st.none() | st.lists(scored, max_size=3),
    finish_reason=st.sampled_from([None, "stop", "length", "error"]),
    stop_reason=st.none() | st.text(max_size=3) | st.integers(0, 99),
    error=st.none() | st.text(max_size=20),
    prompt_logprobs=st.none() | st.lists(st.none() | scored, max_size=3),
    num_cached_tokens=st.integers(0, 99),
)


@settings(max_examples=15)
@given(st.lists(deltas, min_size=1, max_size=4), st.integers(100, 1000))
def test_deltas_travel_whole_in_as_many_frames_as_it_takes(sent, limit):
    found = []
    for one in report_frames(Deltas(sent), limit):
        (payload,) = Frames().feed(one)
        report = read_report(payload)
        assert isinstance(report, Deltas)
        found += report.deltas
    assert [(d.request_id, d.index) for d in found] == [(d.request_id, d.index) for d in sent]
    for before, after in zip(sent, found, strict=True):
        if after != before:
            assert len(msgspec.msgpack.encode(Deltas([before]))) > limit
            assert after.finish_reason == "error"


def test_jobs_travel_whole():
    params = SamplingParams(
        n=3, seed=-5, stop=("a", "β"), logit_bias={7: -1.5}, logprobs=2, stop_token_ids=(1, 2)
    )
    order = Submit(4, "m", [Job("r", [1, 2, 3], params, priority=-1, namespace="x")], 0.5)
    (payload,) = Frames().feed(order_frame(order))
    assert read_order(payload) == order
    assert read_order(Frames().feed(order_frame(Unload(1, "m", None)))[0]) == Unload(1, "m", None)


KEYS = st.binary(min_size=32, max_size=32)


@given(KEYS, KEYS, st.text(max_size=20))
def test_only_who_knows_the_key_is_welcome(key, other, name):
    question = proof.ask()
    given = proof.answer(question, name, key)
    welcome = proof.welcome(question, given, key)
    proof.check_welcome(question, given, welcome, key)
    for wrong in {other, key[::-1]} - {key}:
        with pytest.raises(proof.NotProven):
            proof.welcome(question, given, wrong)
        with pytest.raises(proof.NotProven):
            proof.check_welcome(question, given, proof.Welcome(given.proof), key)
    with pytest.raises(proof.NotProven):  # an answer to another question
        proof.welcome(proof.ask(), given, key)
    with pytest.raises(proof.NotProven):
        proof.welcome(question, proof.Answer(name + "x", given.nonce, given.proof), key)


def test_a_group_has_a_batch_a_stage_or_as_many_as_it_is_told():
    for pp, pp_batches, depth in ((1, None, 1), (1, 3, 1), (4, None, 4), (4, 1, 1), (2, 3, 3)):
        spec = GroupSpec(group="g", devices=tuple(range(pp)), pp=pp, pp_batches=pp_batches)
        config = spec.engine_config(0)
        assert (config.pp_batches or config.pp) == spec.depth == depth
    with pytest.raises(ValueError, match="pp_batches: expected a positive whole number, got 0"):
        GroupSpec(group="g", pp_batches=0)


def test_who_waits_for_something_else_is_woken_by_what_comes():
    inbox: Inbox[int] = Inbox()

    def can_be_read(wake: int, wait_s: float) -> bool:
        return bool(select.select([wake], [], [], wait_s)[0])

    with inbox.watched() as wake:
        assert not can_be_read(wake, 0)
        threading.Timer(0.02, inbox.put, [1]).start()
        assert can_be_read(wake, 60)
    inbox.put(2)
    with inbox.watched() as wake:
        assert can_be_read(wake, 0), "what came before the wait"
    assert [inbox.get(0), inbox.get(None)] == [1, 2]
    with inbox.watched() as wake:
        assert not can_be_read(wake, 0)
    with pytest.raises(queue.Empty):
        inbox.get(0)
    inbox.close()
    inbox.put(3)
    assert inbox.get(0.1) == 3


def test_a_spec_reads_back_and_hides_its_key():
    spec = GroupSpec(group="g", devices=(4, 5), tp=2, key="abcdef", address="/x", memory_bytes=9)
    assert GroupSpec.from_json(spec.to_json()) == spec
    assert "abcdef" not in repr(spec)
    with pytest.raises(ValueError, match="devices: expected tp \\* pp = 4, got 2"):
        dataclasses.replace(spec, pp=2)
    with pytest.raises(ValueError, match="group spec: expected the keys"):
        GroupSpec.from_json("{}")
