"""Real processes: a placement's groups, a replay to them, and what the machine gave."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from blocks.sched.cluster_sim.generation import Admission, EngineSettings
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from recipes.place.group import GroupSpec, fork_group
from recipes.place.measure import (
    Compared,
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

    async def played():
        async with (
            asyncio.timeout(60),
            local_groups(
                placement, folders, LIMITS, core_of=[core, core], start=fork_group
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
    with pytest.raises(ValueError, match="at least one"):
        Gap.of([])
