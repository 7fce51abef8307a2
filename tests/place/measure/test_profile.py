"""Profiles measured on tiny models: what is written, and steps of known content."""

import asyncio
import sys
import time
from pathlib import Path

import pytest
import torch

from blocks.sched.cluster_sim.generation import Load, StepTime
from blocks.sched.profile import Configuration, format_profile, parse_profile
from recipes.place.group import GroupSpec
from recipes.place.measure import Points, StepTimer, at_pace, measure_profile, pace
from recipes.place.measure.measure_profile import _timer
from recipes.place.measure.peak_bytes import PeakBytes
from recipes.serve import EngineConfig
from recipes.serve.parallel import fork_ranks
from tests.place.group.groups import save_models
from tests.place.measure.made_up import IdleRunner, idle_engine, made_up
from tests.serve.models import tiny_engine

FEW = Points(prefill=(1, 8, 16), batches=(1, 3), contexts=(4, 24), rounds=2, decode_steps=2)


def test_a_measured_profile_round_trips_and_weighs_right(tmp_path: Path) -> None:
    (folder,) = save_models(tmp_path, 0)
    told: list[tuple[int, int]] = []
    profile = measure_profile(
        folder,
        [(1, 2), (1, 1)],
        points=FEW,
        start_ranks=fork_ranks,
        progress=lambda done, total: told.append((done, total)),
    )
    assert parse_profile(format_profile(profile)) == profile
    assert profile.model == "tiny-0"
    assert profile.provenance[0].kind == "measured"
    assert profile.configurations == (Configuration(1, 1), Configuration(1, 2))
    total = 2 * 2 * (3 + 4)
    assert told == [(at + 1, total) for at in range(total)]
    alone, cut = profile.timings
    weights = tiny_engine().runner.weight_bytes
    assert alone.weight_bytes == (weights,)
    assert max(cut.weight_bytes) < weights <= sum(cut.weight_bytes)
    assert alone.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4, "keys and values, layers, heads, width"
    assert cut.kv_bytes_per_token == alone.kv_bytes_per_token // 2
    assert alone.activation_bytes == cut.activation_bytes
    logits = 64 * tiny_engine().vocab_size * 4
    assert logits < alone.activation_bytes < 100 * logits
    first, second = cut.prefill[0].stage_s
    assert first == second, "one layer a stage: half of the step each"
    price = StepTime(alone)
    assert price(Load(8, (), 0, 0)) == alone.prefill[1].stage_s
    assert price(Load(0, (), 3, 3 * 24)) == alone.decode[3].stage_s


@pytest.mark.parametrize(("pp_batches", "pp_slices"), [(None, 1), (2, 1), (1, None)])
def test_steps_in_stages_are_timed_one_by_one_and_cut_where_no_batch_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pp_batches: int | None, pp_slices: int | None
) -> None:
    found: list[EngineConfig] = []

    def caught(folder: Path, config: EngineConfig, **_: object) -> None:
        found.append(config)
        raise LookupError

    monkeypatch.setattr(sys.modules[_timer.__module__], "load", caught)
    limits = GroupSpec(group="timed", pp_batches=pp_batches)
    with pytest.raises(LookupError):
        measure_profile(save_models(tmp_path, 0)[0], [(1, 2)], points=FEW, limits=limits)
    assert (found[0].pp, found[0].pp_batches, found[0].pp_slices) == (2, 1, pp_slices)


def test_steps_have_the_content_asked_for() -> None:
    engine = tiny_engine(max_num_seqs=8, token_budget=32)
    seen: list[tuple[int, int, int]] = []
    submit = engine.runner.submit

    def watched(batch, draws, prompts):
        starts = [entry.start + 1 for entry in batch.entries]
        seen.append((len(batch), batch.num_tokens, sum(starts)))
        submit(batch, draws, prompts)

    engine.runner.submit = watched  # type: ignore[method-assign]
    timer = StepTimer(engine)
    timer.prefill_s(20)
    assert seen == [(1, 20, 1)]
    seen.clear()
    timer.decode_s(4, 24, 3)
    assert [step[:2] for step in seen[-3:]] == [(4, 4)] * 3
    contexts = [total / 4 for _, _, total in seen[-3:]]
    assert abs(contexts[1] - 24) <= 4, "24 tokens each, but for what prompts took meanwhile"
    assert not engine.has_work()
    assert engine.manager.num_free_blocks == engine.manager.num_usable_blocks


def test_the_peak_of_a_computation_is_what_its_tensors_held_at_one_moment() -> None:
    there = torch.zeros(1000)
    with PeakBytes() as followed:
        first = there + 1  # 4000 bytes
        first.view(10, 100).add_(1)  # none
        there.t()
        second = first.double()  # 8000 beside them
        del first
        third = second[:250] * 2  # 2000 beside 8000
    assert followed.peak_bytes == 12_000
    del second, third
    with PeakBytes() as followed:
        torch.ones(10, dtype=torch.int8)
        torch.ones(10, dtype=torch.int8)
    assert followed.peak_bytes == 10


def test_the_largest_steps_that_limits_allow_have_room(tmp_path: Path) -> None:
    (folder,) = save_models(tmp_path, 0)
    limits = GroupSpec(group="g", token_budget=200, max_num_seqs=100, block_size=2)
    few = Points(prefill=(1,), batches=(1,), contexts=(4,)).within(256, 200, 100)
    one = Configuration(1, 1)
    with _timer(folder, limits, one, few, fork_ranks, time.process_time) as timer:
        seen: list[tuple[int, int]] = []
        timer._engine.on_batch = lambda batch: seen.append((batch.num_tokens, len(batch)))
        timer.peak_bytes(1, 4)
    assert (200, 1) in seen
    assert (200, 100) in seen


def test_the_peak_of_steps_grows_with_what_they_compute() -> None:
    small, large = (
        StepTimer(tiny_engine(max_num_seqs=4, token_budget=budget)) for budget in (16, 128)
    )
    found = [timer.peak_bytes(2, 8) for timer in (small, large)]
    assert 4 * found[0] < found[1] < 16 * found[0]


def test_seconds_are_medians_of_what_the_clock_says() -> None:
    ticks = iter(range(10**6))
    timer = StepTimer(tiny_engine(), lambda: float(next(ticks)))
    assert timer.prefill_s(3) == 1.0
    assert timer.decode_s(2, 8, 4) == [1.0] * 4


def test_points_stay_within_an_engines_limits() -> None:
    found = Points(prefill=(1, 64, 512), batches=(1, 8, 32), contexts=(16, 4096)).within(
        256, 128, 8
    )
    assert found.prefill == (1, 64, 128)
    assert found.batches == (1, 8)
    assert found.contexts[-1] + found.num_drawn(128) <= 256
    with pytest.raises(ValueError, match="rising"):
        Points(batches=(4, 2))


def test_the_pace_is_the_ratio_to_the_profile() -> None:
    profile = made_up("m0")
    engine = idle_engine(profile, (1, 1))
    runner = engine.runner
    assert isinstance(runner, IdleRunner)
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s, runner.stage_s = now_s + 1.25 * sum(runner.stage_s), ()  # of the step just run
        return now_s

    found = asyncio.run(pace({"m0": [StepTimer(engine, clock)]}, {"m0": profile}, (1, 1)))
    assert found == pytest.approx(1.25, rel=0.05), "contexts are those asked for nearly"
    slower = at_pace({"m0": profile}, 2.0)["m0"]
    assert slower.timing((1, 1)).prefill_s(64) == (2 * profile.timing((1, 1)).prefill_s(64)[0],)
