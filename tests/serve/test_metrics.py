"""What /metrics shows is what the README lists, and it moves."""

import re
from pathlib import Path

from recipes.serve import Job, SamplingParams
from tests.serve.models import tiny_engine

README = Path(__file__).parents[2] / "recipes/serve/README.md"


def values(engine) -> dict[str, float]:
    lines = engine.metrics.render().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_the_readme_lists_exactly_the_metrics_there_are():
    shown = tiny_engine().metrics.render().decode()
    names = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", shown, re.MULTILINE))
    names = {n for n in names if not n.endswith("_created")}
    histograms = set(re.findall(r"^# TYPE (\S+) histogram$", shown, re.MULTILINE))
    bare = {n if n in histograms else n.removesuffix("_total") for n in names}
    assert bare == set(re.findall(r"`(blocks_\w+)`", README.read_text()))


def test_a_request_moves_the_counters():
    engine = tiny_engine()
    for name in ("a", "b"):
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        engine.add(Job(name, list(range(1, 20)), params))
        while engine.has_work():
            engine.step()
    found = values(engine)
    assert found["blocks_prompt_tokens_total"] == 38
    assert found["blocks_generation_tokens_total"] == 10
    assert found["blocks_prefix_cache_hits_total"] == 16
    assert found["blocks_time_to_first_token_seconds_count"] == 2
    assert found["blocks_inter_token_latency_seconds_count"] == 8
    assert found['blocks_request_success_total{finished_reason="length"}'] == 2
    assert found["blocks_kv_cache_usage_perc"] == 0
    assert found["blocks_num_requests_running"] == 0


def test_usage_shows_while_requests_run():
    engine = tiny_engine()
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    engine.add(Job("a", list(range(1, 20)), params))
    engine.step()
    found = values(engine)
    assert found["blocks_num_requests_running"] == 1
    assert 0 < found["blocks_kv_cache_usage_perc"] < 0.1


def test_failed_requests_are_counted_and_leave_the_latencies_alone():
    engine = tiny_engine()
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    for name in ("a", "b"):
        engine.add(Job(name, list(range(1, 20)), params))
    engine.step()
    engine.abort_all("gone")
    found = values(engine)
    assert found['blocks_request_success_total{finished_reason="error"}'] == 2
    assert found["blocks_e2e_request_latency_seconds_count"] == 0
