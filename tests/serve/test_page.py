"""The live page: one document, its script allowed by its hash, and the records it draws."""

import base64
import hashlib
import html.parser
import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from recipes.serve.app import build_app
from recipes.serve.config import ServerConfig
from recipes.serve.outputs import Delta
from recipes.serve.page import (
    ClusterState,
    Observer,
    RecentEvents,
    RecentRequests,
    live_page,
    page_headers,
    percentiles,
)
from recipes.serve.server import build_service
from tests.serve.models import tiny_loaded

VOID = {"meta", "link", "input"}


class Document(html.parser.HTMLParser):
    """Open tags must be closed in order; what is loaded from elsewhere is noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        self.loaded += [found[name] for name in ("src", "href") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_page_is_whole_and_loads_nothing():
    document = Document(live_page())
    assert document.open == []
    assert document.loaded == ["data:,"]
    asked_for = set(re.findall(r'\$\("(\w+)"\)', live_page()))
    assert asked_for <= document.ids
    assert "innerHTML" not in live_page()  # what a server sent must not become markup


def test_the_policy_allows_the_script_of_the_page_and_no_other():
    (script,) = re.findall(r"<script>(.*?)</script>", live_page(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page_headers()["content-security-policy"]
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_a_server_shows_itself_and_keeps_its_state_behind_the_key():
    service = build_service(tiny_loaded(), ServerConfig(model_name="tiny", api_key="key"))
    header = {"authorization": "Bearer key"}
    with TestClient(build_app(service), base_url="http://localhost") as client:
        answer = client.get("/")
        assert (answer.status_code, answer.text) == (200, live_page())
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert client.get("/cluster").status_code == 401
        body = {"model": "tiny", "prompt": [1, 2], "max_tokens": 4, "ignore_eos": True}
        assert client.post("/v1/completions", headers=header, json=body).status_code == 200
        body["prompt"] = [1] * 100_000  # can never run, so it is nobody's traffic
        assert client.post("/v1/completions", headers=header, json=body).status_code == 400
        answer = client.get("/cluster", headers=header)
        state = msgspec.json.decode(answer.content, type=ClusterState)
    (group,), (model,) = state.groups, state.models
    assert (group.state, group.devices, group.configuration) == ("ready", (0,), "1 x 1")
    assert [replica.model for replica in group.models] == ["tiny"] == [model.model]
    assert sum(state.history.arrived) == 1
    assert model.ttft_s is not None
    assert model.tpot_s is not None
    assert model.latency_s is not None
    assert model.latency_s.p50 == pytest.approx(model.ttft_s.p50 + 3 * model.tpot_s.p50)
    assert model.attainment is None  # it had no limit


def test_an_observer_of_what_was_begun_anew_tells_of_that_alone():
    clock = Clock()
    recent = RecentRequests(clock=clock)
    observer = Observer(recent, "a", 2, clock(), ttft_s=1.0, tpot_s=0.3, clock=clock)
    clock.now_s += 0.5
    observer(Delta("r0", 0, [7], "", finish_reason="stop"))
    observer(Delta("r0", 1, [7, 7], ""))
    observer.restart()
    for step_s, index, tokens, reason in ((1.0, 0, [7], "stop"), (0.5, 1, [7], None)):
        clock.now_s += step_s
        observer(Delta("r0", index, tokens, "", finish_reason=reason))
        assert not recent.models(), "the second sample has not ended"
    clock.now_s += 0.25
    observer(Delta("r0", 1, [7], "", finish_reason="stop"))
    view = recent.models()["a"]
    assert view.ttft_s is not None
    assert view.tpot_s is not None
    assert (view.ttft_s.p50, view.tpot_s.p50) == (pytest.approx(1.5), pytest.approx(0.25))
    assert view.attainment == 0.0  # the first token came late


def test_an_observer_tells_first_token_and_time_of_the_others():
    clock = Clock()
    recent = RecentRequests(clock=clock)
    observer = Observer(recent, "a", 2, clock(), ttft_s=1.0, tpot_s=0.3, clock=clock)
    for step_s, index, tokens, reason in (
        (0.5, 0, [7], None),
        (0.1, 1, [7], None),
        (0.3, 0, [7, 7], "stop"),  # 0.4 s for two
        (0.5, 1, [7], "length"),  # 0.8 s for one
    ):
        clock.now_s += step_s
        observer(Delta("r0", index, tokens, "", finish_reason=reason))
    view = recent.models()["a"]
    assert view.ttft_s is not None
    assert view.tpot_s is not None
    assert view.ttft_s.p50 == pytest.approx(0.5)
    assert view.tpot_s.p50 == pytest.approx(1.2 / 3)
    assert view.attainment == 0.0  # 0.4 s a token are too many


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_what_fails_is_no_answer(reason):
    recent = RecentRequests(clock=Clock())
    observer = Observer(recent, "a", 1, 1000.0, ttft_s=1.0, clock=Clock())
    observer(Delta("r0", 0, [], "", finish_reason=reason))
    view = recent.models()["a"]
    assert (view.attainment, view.latency_s) == (0.0, None)


STEPS = st.tuples(
    st.floats(0, 9), st.sampled_from("ab"), st.sampled_from(["met", "late", "free", "refused"])
)


@given(st.lists(STEPS, max_size=60))
def test_recent_requests_count_what_lies_within_the_window(steps):
    clock = Clock()
    recent = RecentRequests(window_s=20, bucket_s=2, clock=clock)
    seen = []
    for wait_s, model, end in steps:
        clock.now_s += wait_s
        recent.arrived(model)
        if end == "refused":
            recent.refused(model)
        else:
            met = {"met": True, "late": False, "free": None}[end]
            recent.answered(model, ttft_s=wait_s, tpot_s=None, latency_s=wait_s, met=met)
        seen.append((math.floor(clock.now_s / 2), clock.now_s, model, end, wait_s))
    inside = [one for one in seen if one[0] > math.floor(clock.now_s / 2) - 10]
    history = recent.history()
    assert len(history.arrived) == 10
    assert sum(history.arrived) == len(inside)
    assert sum(history.limited) == sum(end != "free" for *_, end, _ in inside)
    assert sum(history.met) == sum(end == "met" for *_, end, _ in inside)
    now = math.floor(clock.now_s / 2)
    for number, count in enumerate(history.arrived):
        assert count == sum(bucket == now - 9 + number for bucket, *_ in inside)
    span_s = max(min(clock.now_s - 1000, 20), 2)
    for model, view in recent.models("ab").items():
        own = [one for one in inside if one[2] == model]
        limited = [end for *_, end, _ in own if end != "free"]
        expected = limited.count("met") / len(limited) if limited else None
        assert view.attainment == expected
        assert view.requests_per_s == pytest.approx(len(own) / span_s)
        waits = [
            wait_s
            for _, at_s, name, end, wait_s in seen
            if name == model and end != "refused" and at_s >= clock.now_s - 20
        ]
        assert view.latency_s == percentiles(waits)
        assert view.tpot_s is None


def test_memory_of_requests_and_events_is_bounded():
    clock = Clock()
    recent, events = RecentRequests(clock=clock), RecentEvents(keep=3, clock=clock)
    for number in range(5000):
        clock.now_s += 0.01
        recent.answered("a", ttft_s=number, tpot_s=0.1, latency_s=number, met=True)
        events.add("note", str(number))
    assert [event.text for event in events.view()] == ["4999", "4998", "4997"]
    assert events.view()[2].ago_s == pytest.approx(0.02)
    view = recent.models()["a"]
    assert view.latency_s is not None
    assert view.latency_s.p50 == 4499  # of the last thousand
    assert sum(recent.history().met) == 5000
