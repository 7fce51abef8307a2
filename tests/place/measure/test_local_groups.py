"""Real processes: a placement's groups, a replay to them, and what the machine gave."""

import asyncio
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from blocks.sched.cluster_sim.generation import Admission, EngineSettings, GenerationOutcome
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from recipes.place.group import GroupSpec, Step, fork_group, read_steps
from recipes.place.measure import (
    Compared,
    Contention,
    ContentionMeter,
    Gap,
    Points,
    Probe,
    local_groups,
    measure_group_profile,
    measure_speed,
    replay,
)
from tests.place.group.groups import save_models
from tests.place.measure.made_up import made_up, traffic

SETTINGS = EngineSettings(
    token_budget=512, max_num_seqs=32, max_model_len=256, block_size=16, overlap=False
)
LIMITS = GroupSpec(group="g", token_budget=512, max_num_seqs=32, block_size=16)
PROFILES = {"m0": made_up("m0"), "m1": made_up("m1")}
BOTH = ("m0", "m1")
OPEN = Admission(ttft=False, tpot=False)


def test_a_replay_to_processes_answers_everything(tmp_path: Path) -> None:
    folders: dict[str, Path] = dict(zip(BOTH, save_models(tmp_path, 0, 1), strict=True))
    rooms = (4096, 4096)
    groups = [Group((at,), Configuration(1, 1), BOTH, rooms) for at in range(2)]
    placement = Placement(tuple(groups))
    workload = traffic(0, [15.0, 15.0], 1.0, 1.0).with_slo(10.0, 10.0)
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    logs = [tmp_path / f"steps-{at}" for at in range(2)]
    zero_s: list[float] = []

    async def played():
        async with (
            asyncio.timeout(60),
            local_groups(
                placement,
                folders,
                LIMITS,
                core_of=[core, core],
                start=fork_group,
                step_logs=logs,
            ) as handles,
        ):
            pids = [handle.process.pid for handle in handles]  # type: ignore[attr-defined]
            cores = [os.sched_getaffinity(pid) for pid in pids]
            few = Points(prefill=(1, 9), batches=(1, 3), contexts=(8,), rounds=2, decode_steps=2)
            timed = await measure_group_profile(
                folders["m0"], "m0", (1, 1), handles, LIMITS, points=few
            )
            probes = [Probe(handle, "m0") for handle in handles]
            speed = await measure_speed(probes, rounds=1, prompt_len=8, num_tokens=3)
            outcome = await replay(
                workload,
                placement,
                handles,
                PROFILES,
                settings=SETTINGS,
                admission=OPEN,
                vocab_size=300,
                begun=zero_s.append,
            )
            tight = workload.with_slo(1e-6, 1e-6)
            refused = await replay(
                tight, placement, handles, PROFILES, settings=SETTINGS, vocab_size=300, seed=1
            )
            return outcome, refused, timed, speed, cores

    meter = ContentionMeter()
    outcome, refused, (timed, way_s), speed, cores = asyncio.run(played())
    seen = meter.read()
    assert os.sched_getaffinity(0) == before
    assert cores == [{core}, {core}]
    outcome.check_invariants()
    assert outcome.finished.all(), "limits of ten seconds, and nobody is refused"
    assert (outcome.ttft_s > 0).all()
    assert set(np.unique(outcome.group)) == {0, 1}
    assert refused.counts["rejected"] == workload.num_requests
    check_steps([read_steps(log) for log in logs], outcome, zero_s[0])
    assert timed.configurations == (Configuration(1, 1),)
    assert [row[:2] for row in timed.timings[0].decode] == [(1, 8), (3, 8)]
    assert way_s >= 0
    assert speed[0] == 1.0
    assert len(speed) == 2
    assert 0 < speed[1] <= 1
    assert seen.own_s > 0
    assert 0 <= seen.others <= 1.05
    line = Compared("a setting", outcome, refused, seen).line()
    assert "a setting" in line
    assert Gap.of([Compared("a", outcome, refused)]).worst == pytest.approx(100.0)
    quiet, loud = (Contention(10.0, 2, 5.0, 5.0 + others_s) for others_s in (0.9, 1.1))
    both = Compared("a", outcome, outcome, quiet, by_profile=refused)
    assert (both.points, both.profile_points) == (0.0, pytest.approx(-100.0))
    assert both.is_undisturbed
    assert not both._replace(contention=loud).is_undisturbed
    assert "by profile alone 0.0%" in both.line()
    with pytest.raises(ValueError, match="at least one"):
        Gap.of([])


def check_steps(logs: list[list[Step]], outcome: GenerationOutcome, zero_s: float) -> None:
    """Every token is in a step, and no two steps of a group are at a time."""
    tokens = 0
    for at, steps in enumerate(logs):
        assert {step.model for step in steps} == set(BOTH)
        for one, other in itertools.pairwise(steps):
            assert one.began_s + one.seconds <= other.began_s + 1e-6
        own = [step for step in steps if step.began_s >= zero_s]
        assert all(step.seconds > 0 for step in own)
        mine = outcome.group == at
        prompts = int(outcome.workload.prompt_len[mine].sum())
        assert sum(step.load.num_prompt for step in own) == prompts
        tokens += sum(step.load.num_decodes for step in own)
    later = outcome.workload.output_len - 1
    assert tokens == later.sum()
    last_s = max(step.began_s + step.seconds for steps in logs for step in steps) - zero_s
    assert last_s > float(outcome.answered_s.max()) - 0.5
