"""The engine that serves and the engine that is simulated tell one story of batches in stages."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from blocks.kv import BlockManager
from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    StepTime,
    load_of,
    simulate_generation,
)
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from blocks.sched.workload import Workload
from recipes.serve import Engine, EngineConfig
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import StepResult
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw, Drawn
from tests.place.measure.made_up import KV_TOKENS, SETTINGS, IdleRunner
from tests.serve.models import tiny_tokenizer
from tests.serve.test_engine import job

LIMITS: dict[str, Any] = {"max_num_seqs": 32, "max_model_len": 256, "block_size": 16}


def profile(pp: int, uneven: float = 0.0, fixed_s: float = 8e-3, each_s: float = 1e-4) -> Profile:
    """Stages that take as long as one another, or the first one more of it.

    Args:
        fixed_s: of a decode step. each_s: on top for every sequence.
    """

    def cut(seconds: float) -> tuple[float, ...]:
        shares = [1 + uneven * (stage == 0) for stage in range(pp)]
        return tuple(seconds * share / sum(shares) for share in shares)

    timing = Timing(
        Configuration(1, pp),
        (1,) * pp,
        kv_bytes_per_token=1,
        prefill=tuple(PrefillTime(n, cut(0.004 + n * 1e-4)) for n in (1, 1001)),
        decode=tuple(
            DecodeTime(b, c, cut(fixed_s + b * each_s + b * c * 1e-7))
            for b in (1, 101)
            for c in (1, 1001)
        ),
    )
    return Profile("m", "d", (Provenance("derived", "made up"),), (timing,))


class PipelineRunner(IdleRunner):
    """Batches go through stages on a clock of its own, which stands still but for ``collect``.

    busy: of every stage, from when to when it was at work on which step.
    """

    def __init__(self, step_time: StepTime, pp: int, depth: int) -> None:
        super().__init__(step_time, depth)
        self.now_s = 0.0
        self.busy: list[list[tuple[float, float, int]]] = [[] for _ in range(pp)]
        self._out: collections.deque[tuple[float, StepResult]] = collections.deque()

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        super().submit(batch, draws, prompts)
        at_s = self.now_s
        for stage, seconds in zip(self.busy, self._step_time(load_of(batch)), strict=True):
            began_s = max(at_s, stage[-1][1] if stage else 0.0)
            at_s = began_s + seconds
            stage.append((began_s, at_s, batch.step))
        self._out.append((at_s, StepResult([Drawn(7) for _ in draws], [])))
        assert len(self._out) <= self.depth

    def collect(self) -> StepResult:
        self.now_s, result = self._out.popleft()
        return result


def served(
    known: Profile, pp: int, depth: int, workload: Workload, budget: int
) -> tuple[list[float], list[float], PipelineRunner]:
    """First and last token of every request, all of which come at 0."""
    runner = PipelineRunner(StepTime(known.timing((1, pp))), pp, depth)
    config = EngineConfig(kv_bytes=1, token_budget=budget, **LIMITS)
    engine = Engine(runner, detokenizers(tiny_tokenizer()), config, clock=lambda: runner.now_s)
    lengths = zip(workload.prompt_len.tolist(), workload.output_len.tolist(), strict=True)
    for at, (prompt_len, output_len) in enumerate(lengths):
        engine.add(job(f"{at}", [at + 1] * prompt_len, max_tokens=output_len, ignore_eos=True))
    first_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    while engine.has_work():
        for delta in engine.step():
            first_s.setdefault(delta.request_id, runner.now_s)
            last_s[delta.request_id] = runner.now_s
    names = [str(at) for at in range(workload.num_requests)]
    return [first_s[name] for name in names], [last_s[name] for name in names], runner


@pytest.mark.parametrize("budget", [64, 512])
@pytest.mark.parametrize(("pp", "lanes", "uneven"), [(2, 1, 0.0), (2, 2, 0.0), (2, 2, 0.5)])
def test_served_and_simulated_tokens_come_at_the_same_moments(pp, lanes, uneven, budget) -> None:
    rng = np.random.default_rng(5)
    workload = Workload.of(
        ["m"], [0.0] * 24, [0] * 24,
        prompt_len=rng.integers(4, 100, 24), output_len=rng.integers(1, 40, 24),
    )  # fmt: skip
    known = profile(pp, uneven)
    first_s, last_s, runner = served(known, pp, lanes, workload, budget)
    group = Group(
        tuple(range(pp)), Configuration(1, pp), ("m",), (KV_TOKENS - SETTINGS.block_size,)
    )
    outcome = simulate_generation(
        Placement((group,)),
        {"m": known},
        workload,
        settings=EngineSettings(num_lanes=lanes, token_budget=budget, **LIMITS),
        admission=Admission(ttft=False, tpot=False),
        make_allocator=lambda blocks, size: BlockManager(blocks + 1, size),
    )
    assert outcome.first_token_s.tolist() == pytest.approx(first_s)
    assert outcome.answered_s.tolist() == pytest.approx(last_s)
    together = _overlap_s(runner.busy)
    assert together == 0.0 if lanes == 1 else together > 0.3 * max(last_s)


def test_stages_gain_what_smaller_steps_are_shorter() -> None:
    """A sequence goes through all stages for a token, in a crowd or not: at as many sequences, as
    many batches as stages gain what a step of that share of them takes less."""
    workload = Workload.of(["m"], [0.0] * 16, [0] * 16, prompt_len=4, output_len=100)

    def gain(known: Profile, depth: int) -> float:
        alone, several = (max(served(known, 4, n, workload, 64)[1]) for n in (1, depth))
        return alone / several

    assert gain(profile(4, fixed_s=0.0, each_s=1e-3), 4) == pytest.approx(4, rel=0.1)
    assert gain(profile(4, fixed_s=0.0, each_s=1e-3), 2) == pytest.approx(2, rel=0.1)
    assert gain(profile(4, fixed_s=8e-3, each_s=0.0), 4) == pytest.approx(1, rel=0.1)


def _overlap_s(busy: list[list[tuple[float, float, int]]]) -> float:
    """How long the stages were at work on different steps at a time."""
    first, second = busy
    return sum(
        max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second if a[2] != b[2]
    )
