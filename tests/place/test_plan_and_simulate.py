"""The verbs plan and simulate, end to end."""

import html.parser
import json
import socket
import xml.etree.ElementTree as ElementTree

import pytest

from recipes.place.__main__ import main
from recipes.place.front import Server
from recipes.place.planning import read_plan
from tests.place.planning_cases import two_models, writers

VOID = {"meta", "link", "br"}


class Page(html.parser.HTMLParser):
    """Tags must be closed in order; the words of the page are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.num_drawings = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert not {name for name, _ in attrs} & {"src", "href"}  # it needs no network
        assert tag != "script"
        self.num_drawings += tag == "svg"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_a_port_that_is_taken_is_told_of_before_any_work(tmp_path, capsys):
    config = two_models(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(config), "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert f"got 127.0.0.1:{port}: Address already in use; choose another --port" in told


def test_a_placement_that_is_not_there_is_told_of_before_a_model_is_timed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("recipes.place.serve_verb.profiles_here", lambda *_: pytest.fail("timed"))
    gone = str(tmp_path / "gone.json")
    assert main(["serve", str(writers(tmp_path)), "--port", "0", "--placement", gone]) == 2
    assert f"placement: expected a placement file, got {gone}" in capsys.readouterr().err


@pytest.mark.parametrize("traffic", [{}, {"trace": "gone.csv"}, {"total_rate": 0.001}])
def test_a_placement_that_is_given_is_served_without_planned_traffic(
    tmp_path, capsys, monkeypatch, traffic
):
    config = writers(tmp_path)
    data = json.loads(config.read_text())
    data["models"] = [{**one, "folder": "bundled", "rate": 0} for one in data["models"]]
    config.write_text(json.dumps(data | {"traffic": traffic}))
    placement = tmp_path / "by-hand.json"
    group = {"devices": [0], "configuration": "1 x 1", "models": ["write"], "kv_tokens": [64]}
    placement.write_text(json.dumps({"version": 1, "groups": [group]}))
    served: list[Server] = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: served.append(self))
    assert main(["serve", str(config), "--port", "0", "--placement", str(placement)]) == 0
    assert "0: devices 0, 1 x 1: write (64 tokens)" in capsys.readouterr().out
    assert len(served) == 1
    assert main(["serve", str(config), "--port", "0"]) == 2
    assert len(served) == 1, "without a placement there must be traffic to search for one"


def test_what_cannot_be_served_is_told_with_what_to_do(tmp_path, capsys):
    config = two_models(tmp_path)
    group = {"devices": [0], "configuration": "1 x 1", "models": ["a"], "kv_tokens": []}
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "groups": [group]}))
    placement = str(tmp_path / "p.json")
    assert main(["serve", str(config), "--port", "0", "--placement", placement]) == 2
    told = capsys.readouterr().err
    assert "models: expected models that generate, to serve, got single-pass profiles; " in told
    assert "it scores with echo, logprobs and max_tokens 0" in told
    data = json.loads(config.read_text())
    data["models"].append({"name": "w", "profile": str(writers(tmp_path).parent / "w.profile")})
    config.write_text(json.dumps(data))
    assert main(["plan", str(config)]) == 2
    assert "give each kind a file and devices of its own" in capsys.readouterr().err


def test_plan_prints_writes_and_draws_the_known_best(tmp_path, capsys):
    out, page = tmp_path / "out" / "p.json", tmp_path / "out" / "p.html"
    config = two_models(tmp_path)
    assert main(["plan", str(config), "--out", str(out), "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "2 models, 2 cpu devices of 1GiB; 4 requests in 10 s (log.csv)" in told
    assert "attainment  100 % of requests in time (simulated)" in told
    assert "bound       100 % are possible at most, a gap of 0.00 points" in told
    assert "0: devices 0,1, 1 x 2: a, b" in told
    assert "selective replication  50.00 %" in told
    assert "carries     10 or more times this traffic with 99 % in time" in told
    assert "binds       nothing: everything is served in time" in told
    assert read_plan(out).attainment == 1.0
    drawn = Page(page.read_text())
    assert drawn.num_drawings == 3
    assert {"group 0: 1 x 2", "a", "b", "node 0", "selective replication"} <= set(drawn.words)


def test_plan_says_what_binds(tmp_path, capsys):
    page = tmp_path / "p.html"
    config = two_models(tmp_path, slo_s=1.2)
    assert main(["plan", str(config), "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "binds       a quarter more devices (4) helps most, to 100 %" in told
    assert "what if     one device more (3): 75.00 % (+25.00 points)" in told
    assert "missed      a 1, b 1" in told  # the second of each burst
    words = Page(page.read_text()).words
    assert {"one device more (3)", "75.00 %", "+25.00 points"} <= set(words)
    assert main(["plan", str(config), "--quick"]) == 0
    told = capsys.readouterr().out
    assert "what if" not in told
    assert "binds       not looked for" in told


def test_simulate_prints_what_becomes_of_requests_and_what_faults_cost(tmp_path, capsys):
    out, faults = tmp_path / "p.json", tmp_path / "faults.json"
    config = two_models(tmp_path)
    assert main(["plan", str(config), "--quick", "--out", str(out)]) == 0
    events = [{"at_s": 0.6, "kind": "down", "group": 0}, {"at_s": 5, "kind": "up", "group": 0}]
    faults.write_text(json.dumps(events))
    svg, page = tmp_path / "curves.svg", tmp_path / "s.html"
    capsys.readouterr()
    more = ["--events", str(faults), "--curves", str(svg), "--page", str(page)]
    assert main(["simulate", str(config), "--placement", str(out), *more]) == 0
    told = capsys.readouterr().out
    assert "attainment  100 % of 4 requests" in told
    assert "a             1         2    100 %  1.25 s / 1.45 s / 1.50 s" in told
    assert "group 0    1 x 2       4  17.39 %" in told  # 2 s of work a stage in 11.5 s
    assert "attainment  50.00 % (-50.00 points)" in told
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "0 to 0.6 s 2 100 % 0.00 %" in lines
    assert "5 to 10 s 2 100 % 100 %" in lines
    ElementTree.fromstring(svg.read_text())
    drawn = Page(page.read_text())
    assert drawn.num_drawings == 3
    wanted = {"group 0", "a", "b", "requests a second", "CV of the gaps, times as it is"}
    assert wanted | {"devices", "time limits, times as they are"} <= set(drawn.words)
    assert any("is down from 0.6 to 5 s" in word for word in drawn.words)


def test_models_that_generate_show_first_tokens_and_rooms(tmp_path, capsys):
    out, page = tmp_path / "p.json", tmp_path / "p.html"
    config = writers(tmp_path)
    assert main(["plan", str(config), "--quick", "--out", str(out), "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "what generates counts as served in it" in told
    words = Page(page.read_text()).words
    rooms = {kv for group in read_plan(out).placement.groups for kv in group.kv_tokens}
    for kv_tokens in rooms:
        assert any(f"keys and values of {kv_tokens:,} tokens" in word for word in words)
    assert main(["simulate", str(config), "--placement", str(out), "--draw", "0"]) == 0
    told = capsys.readouterr().out
    assert "TTFT p50 / p90 / p99" in told
    assert "TPOT p50 / p90 / p99" in told
    assert f"attainment  {read_plan(out).attainment:.0%} of".replace("%", " %") in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan", "none.toml"], "config: expected a TOML or JSON file"),
        (["plan", "two.json", "memory=100MiB"], "a needs 500,000,000 bytes a device"),
        (["plan", "two.json", "a.profile=none"], "a.profile: expected a profile file"),
        (["plan", "two.json", "begin_s=20"], "traffic: expected at least one request"),
        (["plan", "two.json", "--out", "."], "out: expected a file to write"),
        (["simulate", "two.json", "--placement", "none.json"], "expected a placement file"),
        (["simulate", "two.json", "--placement", "two.json"], "write it with plan"),
        (["simulate", "two.json", "--placement", "far.json"], "unknown device"),
        (
            ["simulate", "two.json", "--placement", "fits.json", "--events", "two.json"],
            "expected a list",
        ),
        (
            ["simulate", "two.json", "--placement", "fits.json", "--events", "third.json"],
            "expected one of 1 groups",
        ),
    ],
)
def test_bad_input_is_told_in_a_line_and_with_exit_code_2(
    tmp_path, capsys, monkeypatch, arguments, text
):
    two_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, devices in (("far", [8, 9]), ("fits", [0, 1])):
        row = {"devices": devices, "configuration": "1 x 2", "models": ["a"], "kv_tokens": []}
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": 1, "groups": [row]}))
    (tmp_path / "third.json").write_text('[{"at_s": 1, "kind": "down", "group": 3}]')
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert "Traceback" not in error
