"""Batches of engines in the stages of a group, against a model that goes from tick to tick."""

import collections
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched import Request, Scheduler, Sequence, State
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    SharedCores,
    StepTime,
    load_of,
    simulate_generation,
)
from blocks.sched.cluster_sim.generation.block_counter import BlockCounter
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, DecodeTime, PrefillTime, Profile, Timing
from blocks.sched.workload import Workload
from tests.sched.cluster.cases import MADE_UP

TICK_S = 2.0**-10
KV_TOKENS = 256
OPEN = Admission(ttft=False, tpot=False)
LIMITS: dict[str, Any] = {"token_budget": 24, "max_num_seqs": 6, "block_size": 4}


def profile(model: str, stages: list[tuple[int, int]]) -> Profile:
    """Every stage takes so many ticks and so many more for every token of a step."""

    def row(tokens: int) -> tuple[float, ...]:
        return tuple((fixed + each * tokens) * TICK_S for fixed, each in stages)

    timing = Timing(
        Configuration(1, len(stages)),
        (1,) * len(stages),
        kv_bytes_per_token=1,
        prefill=tuple(PrefillTime(n, row(n)) for n in (1, 1025)),
        decode=tuple(DecodeTime(n, c, row(n)) for n in (1, 65) for c in (1, 1025)),
    )
    return Profile(model, "d", MADE_UP, (timing,))


class Slot:
    """An engine of the model below."""

    def __init__(self, settings: EngineSettings, lanes: int, now_s: list[float]) -> None:
        blocks = KV_TOKENS // settings.block_size
        self.scheduler = Scheduler(
            BlockCounter(blocks, settings.block_size),
            token_budget=settings.token_budget,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            clock=lambda: now_s[0],
            max_in_flight=lanes,
        )
        self.live: dict[int, Sequence] = {}
        self.num_out = self.turn = 0


@dataclasses.dataclass
class Way:
    """A batch on its way: ticks for each stage, and where it is."""

    slot: Slot
    batch: Any
    ticks: list[int]
    left: int = 0


class Ticks:
    """One group, tick by tick: in each, batches leave stages, requests come, batches are sent, and
    free stages take the first of those that wait for them."""

    def __init__(
        self, workload: Workload, known: list[Profile], settings: EngineSettings, pp: int
    ) -> None:
        self.workload, self.settings = workload, settings
        self.times = [StepTime(one.timing((1, pp))) for one in known]
        self.lanes = settings.lanes(pp)
        self.now_s = [0.0]
        self.slots = [Slot(settings, self.lanes, self.now_s) for _ in known]
        self.queues: list[collections.deque[Way]] = [collections.deque() for _ in range(pp)]
        self.at_work: list[Way | None] = [None] * pp
        self.first_s = [math.nan] * workload.num_requests
        self.last_s = [math.nan] * workload.num_requests
        self.together = 0  # ticks in which two stages were at work

    def run(self) -> None:
        arrivals = [round(at_s / TICK_S) for at_s in self.workload.arrival_s.tolist()]
        come, tick, num_turns = 0, 0, 0
        while come < len(arrivals) or any(slot.live for slot in self.slots):
            self.now_s[0] = tick * TICK_S
            self.leave()
            while come < len(arrivals) and arrivals[come] == tick:
                self.come(come)
                come += 1
            while (slot := self.send()) is not None:
                num_turns += 1
                slot.turn = num_turns
                if self.settings.overlap:
                    break  # one at a time into stage one
            for stage, queue in enumerate(self.queues):
                if self.at_work[stage] is None and queue:
                    way = self.at_work[stage] = queue.popleft()
                    way.left = way.ticks[stage]
            busy = [way for way in self.at_work if way is not None]
            for way in busy:
                way.left -= 1
            self.together += len(busy) > 1
            tick += 1
            assert tick < 100_000

    def leave(self) -> None:
        for stage in reversed(range(len(self.at_work))):
            way = self.at_work[stage]
            if way is None or way.left:
                continue
            self.at_work[stage] = None
            if stage + 1 < len(self.at_work):
                self.queues[stage + 1].append(way)
                continue
            way.slot.num_out -= 1
            drawn = [[0] * entry.num_samples for entry in way.batch.entries]
            for sequence, _, reason in way.slot.scheduler.update(way.batch, drawn):
                request = int(sequence.request.request_id)
                if math.isnan(self.first_s[request]):
                    self.first_s[request] = self.now_s[0]
                if reason is not None:
                    self.last_s[request] = self.now_s[0]
                    del way.slot.live[request]

    def come(self, request: int) -> None:
        prompt, output = self.workload.prompt_len[request], self.workload.output_len[request]
        asked = Request(
            request_id=str(request), prompt_tokens=[request] * int(prompt), max_tokens=int(output)
        )
        slot = self.slots[self.workload.model[request]]
        slot.live[request] = slot.scheduler.add(asked)

    def send(self) -> Slot | None:
        """A batch of the slot whose turn it is; None where nothing may be sent."""
        lanes, out = self.lanes, [slot for slot in self.slots if slot.num_out]
        if self.settings.overlap:
            if self.at_work[0] is not None or self.queues[0]:
                return None
        elif sum(bool(slot.live) for slot in self.slots) > 1:
            lanes = 1
        able = [slot for slot in self.slots if slot.live and slot.num_out < lanes]
        for slot in sorted(able, key=lambda slot: (self.due_s(slot), slot.turn)):
            if not self.settings.overlap and out and out != [slot]:
                return None
            batch = slot.scheduler.schedule(lanes)
            if batch.entries:
                seconds = self.times[self.slots.index(slot)](load_of(batch))
                self.queues[0].append(Way(slot, batch, [round(s / TICK_S) for s in seconds]))
                slot.num_out += 1
                return slot
        return None

    def due_s(self, slot: Slot) -> float:
        if self.settings.turns == "round":
            return 0.0
        due = []
        for request, sequence in slot.live.items():
            begun_s, tpot_s = self.first_s[request], float(self.workload.tpot_s[request])
            if sequence.state is State.DECODING:
                due.append(begun_s + sequence.num_output * tpot_s)
            else:
                due.append(float(self.workload.deadline_s[request]))
        return min(due, default=math.inf)


def case(seed: int) -> tuple[Workload, list[Profile], EngineSettings, int]:
    rng = np.random.default_rng(seed)
    pp, num_models, count = (int(rng.integers(1, most)) for most in (4, 3, 15))
    models = ["a", "b"][:num_models]
    known = [
        profile(m, [(int(rng.integers(1, 20)), int(rng.integers(0, 3))) for _ in range(pp)])
        for m in models
    ]
    arrivals = np.sort(rng.integers(0, rng.choice([1, 60, 600]), count)) * TICK_S
    workload = Workload.of(
        models, arrivals.tolist(), rng.integers(0, num_models, count).tolist(),
        prompt_len=rng.integers(1, 60, count), output_len=rng.integers(1, 12, count),
        slo_s=(rng.integers(10, 400, count) * TICK_S).tolist(),
        tpot_s=(rng.integers(5, 60, count) * TICK_S).tolist(),
    )  # fmt: skip
    settings = EngineSettings(
        num_lanes=(None, 1, 2, 4)[rng.integers(4)],
        overlap=bool(rng.integers(2)),
        turns="due" if rng.integers(2) else "round",
        **LIMITS,
    )
    return workload, known, settings, pp


def simulated(
    workload: Workload, known: list[Profile], settings: EngineSettings, pp: int
) -> tuple[list[float], list[float]]:
    rooms = (KV_TOKENS,) * len(known)
    group = Group(tuple(range(pp)), Configuration(1, pp), tuple(p.model for p in known), rooms)
    outcome = simulate_generation(
        Placement((group,)), {p.model: p for p in known}, workload, settings=settings,
        admission=OPEN,
    )  # fmt: skip
    outcome.check_invariants()
    assert outcome.finished.all()
    return outcome.first_token_s.tolist(), outcome.answered_s.tolist()


@given(st.integers(0, 2**32 - 1))
def test_every_token_comes_in_the_tick_in_which_it_comes_step_by_step(seed) -> None:
    made = case(seed)
    expected = Ticks(*made)
    expected.run()
    first_s, last_s = simulated(*made)
    assert first_s == pytest.approx(expected.first_s, abs=TICK_S / 4)
    assert last_s == pytest.approx(expected.last_s, abs=TICK_S / 4)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("uneven", "stages"), [(0, 2), (0, 4), (8, 2), (8, 3)])
def test_a_lone_engine_is_as_fast_as_its_slowest_stage(overlap, uneven, stages) -> None:
    """As many sequences as lanes: every step has one of them."""
    ticks = [(16 + uneven * (stage == 1), 0) for stage in range(stages)]
    workload = Workload.of(["a"], [0.0] * stages, prompt_len=4, output_len=50)
    settings = EngineSettings(num_lanes=None, overlap=overlap, token_budget=16, max_num_seqs=4)
    _, last_s = simulated(workload, [profile("a", ticks)], settings, stages)
    assert max(last_s) / TICK_S == pytest.approx((16 + uneven) * 50 * stages, rel=0.05)
    alone = dataclasses.replace(settings, num_lanes=1)
    _, last_s = simulated(workload, [profile("a", ticks)], alone, stages)
    whole = 16 * stages + uneven
    assert max(last_s) / TICK_S == pytest.approx(whole * 50, rel=0.1), "all in every step"


def test_engines_that_do_not_overlap_take_turns_with_whole_batches() -> None:
    """Two models with two sequences each: as with one lane; the last one left has the stages."""
    known = [profile(model, [(10, 1), (10, 1)]) for model in "ab"]
    workload = Workload.of(
        ["a", "b"], [0.0] * 4, [0, 0, 1, 1], prompt_len=2, output_len=[40, 40, 10, 10]
    )
    settings = EngineSettings(num_lanes=None, overlap=False, turns="round", **LIMITS)
    first_s, last_s = simulated(workload, known, settings, 2)
    alone = simulated(workload, known, dataclasses.replace(settings, num_lanes=1), 2)
    assert first_s == pytest.approx(alone[0])
    assert last_s[2:] == pytest.approx(alone[1][2:])
    ticks = Ticks(workload, known, settings, 2)
    ticks.run()
    assert ticks.together > 0.8 * 30 * 2 * 10, "once the others have ended"


def test_lanes_are_not_simulated_on_shared_cores_or_at_a_pace() -> None:
    known, settings = [profile("a", [(1, 0), (1, 0)])], EngineSettings(overlap=False, num_lanes=2)
    placement = Placement((Group((0, 1), Configuration(1, 2), ("a",), (KV_TOKENS,)),))
    asked = Workload.of(["a"], [0.0], prompt_len=1, output_len=1)
    options: list[dict[str, Any]] = [{"cores": SharedCores((0, 1))}, {"pace": lambda *_: 1.0}]
    for more in options:
        with pytest.raises(ValueError, match="num_lanes: expected 1 with cores or a pace, got 2"):
            simulate_generation(placement, {"a": known[0]}, asked, settings=settings, **more)
