"""Storms of faults over a fleet, its router and its desk, with simulated groups and clock.

The truth is kept apart from what the fleet believes: which processes live on which devices and
what they hold in memory, and how often every request was answered.
"""

import collections
import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from blocks.sched.cluster_sim.generation import EngineSettings, Standing
from blocks.sched.placement import Group
from recipes.place.fleet.action import Action, Devices, Load, Start, Stop, Unload
from recipes.place.fleet.capacity import Capacity
from recipes.place.fleet.desk import Ask, Desk, Nowhere, Part
from recipes.place.fleet.drift import Traffic
from recipes.place.fleet.fleet import Fleet
from recipes.place.fleet.live_group import LiveGroup
from recipes.place.fleet.order import waits_for
from recipes.place.fleet.router import Refusal, Route, Router
from recipes.place.fleet.seat import Seat, Word
from recipes.place.fleet.slo import Slo
from tests.place.fleet.clusters import BLOCK_SIZE, MEMORY, NAMES, PROFILES, draw_placement, fits

DRAIN_S = 3.0
LOAD_WAIT_S = 5.0
FAULTS = ("kill", "kill", "kill", "node", "back", "clock", "replan", "leave")


class Told(NamedTuple):
    """What a storm was like."""

    events: int
    requests: int
    faults: int
    answers: dict[str, int]
    rounds_to_calm: int


@dataclasses.dataclass
class Job:
    """An action of a round; ``waits`` are the jobs that must be done before it."""

    action: Action
    waits: list["Job"]
    state: str = "pending"
    group: LiveGroup | None = None


class Storm:
    """One cluster in bad weather."""

    def __init__(self, seed: int, num_devices: int) -> None:
        self.rng = random.Random(seed)
        self.num_devices = num_devices
        settings = EngineSettings(
            token_budget=64, max_num_seqs=8, block_size=BLOCK_SIZE, overlap=False
        )
        least = dict.fromkeys(NAMES, 20)
        self.fleet = Fleet(
            draw_placement(self.rng, num_devices),
            Capacity(PROFILES, MEMORY, least, BLOCK_SIZE),
            num_devices,
            Router(settings, look=self.word),
            wanted_s=20.0,
            least_stay_s=(0.0, 4.0)[seed % 2],
            given_up_s=30.0,
        )
        self.traffic = Traffic(NAMES, 20.0)
        self.desk = Desk(self.fleet, self.traffic)
        self.now_s, self.jump_s = 0.0, 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.jobs: list[Job] = []
        self.processes: dict[str, tuple[Devices, dict[str, int]]] = {}
        self.asks: dict[str, Ask] = {}
        self.waiting: dict[str, Ask] = {}
        self.unread: set[str] = set()  # of clients who want their answers whole
        self.answers: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.num_events = self.num_faults = 0
        self.calm = self.by_hand = False

    @property
    def clock_s(self) -> float:
        """What the fleet's clock shows; it jumps."""
        return self.now_s + self.jump_s

    def word(self, seat: Seat) -> Word:
        """What a group tells; a third of the time a long step is under way."""
        idle = Standing(num_free_blocks=seat.num_blocks)
        return Word(idle, busy_s=self.rng.choice((0.0, 0.0, 0.3)))

    def after(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.heap, (self.now_s + seconds, next(self.order), what, args))

    def run(self, num_events: int) -> None:
        """Go on until so many events have happened."""
        last = self.num_events + num_events
        while self.heap and self.num_events < last:
            self.step()

    def step(self) -> None:
        at_s, _, what, args = heapq.heappop(self.heap)
        self.now_s = max(self.now_s, at_s)
        self.num_events += 1
        what(*args)

    # --- requests -------------------------------------------------------------------------------

    def arrive(self) -> None:
        if not self.calm:
            self.after(self.rng.expovariate(8.0), self.arrive)
        part = Part(f"r{len(self.asks)}", self.rng.randint(1, 60), self.rng.choice((1, 1, 1, 2)))
        model = self.rng.choices(NAMES, (8, 4, 2, 1))[0]
        slo = self.rng.choice((Slo(), Slo(2.0, 0.2), Slo(0.2, 0.05)))
        ask = Ask(model, (part,), part.prompt_len + 10, slo)
        self.asks[part.part_id] = ask
        if self.rng.random() < 0.3:
            self.unread.add(part.part_id)
        self.ask(ask, self.now_s + LOAD_WAIT_S)

    def ask(self, ask: Ask, until_s: float) -> None:
        found = self.desk.ask(ask, self.clock_s)
        part_id = ask.parts[0].part_id
        if isinstance(found, Route):
            self.serve(ask)
        elif isinstance(found, Refusal):
            assert found.retry_s > 0
            assert not ask.slo.allows(found.prediction)
            self.answer(ask, "refused")
        elif isinstance(found, Nowhere) and self.now_s < until_s:
            self.waiting[part_id] = ask
            self.after(0.5, self.again, ask, until_s)
            self.round()
        else:
            self.answer(ask, "unavailable")

    def again(self, ask: Ask, until_s: float) -> None:
        if self.waiting.pop(ask.parts[0].part_id, None) is not None:
            self.ask(ask, until_s)

    def serve(self, ask: Ask) -> None:
        """Its group makes tokens of it, as long as it lives."""
        assert len(ask.tried) <= 2, "a request was sent to a third group"
        devices = ask.tried[-1].devices
        group = self.fleet.groups[devices]
        held = self.processes[group.name][1]
        assert ask.model in held, f"{ask.model} was sent to {group.name}, which holds {held}"
        part = ask.parts[0]
        at_s = 0.05
        for _ in range(self.rng.randint(1, 3)):
            at_s += self.rng.expovariate(4.0)
            for sample in range(part.num_samples):
                self.after(at_s, self.token, ask, group.name, sample, False)
        for sample in range(part.num_samples):
            self.after(at_s + 0.1, self.token, ask, group.name, sample, True)
        if self.rng.random() < 0.05:
            self.after(self.rng.random(), self.leave, ask)

    def token(self, ask: Ask, name: str, sample: int, over: bool) -> None:
        part_id = ask.parts[0].part_id
        current = self.desk.of(part_id)
        if name not in self.processes or current is None:
            return
        if self.fleet.groups[ask.tried[-1].devices].name != name:
            return  # it went elsewhere since
        self.desk.gain(part_id, sample, 3, over=over)
        if self.desk.of(part_id) is None:
            self.answer(ask, "served")

    def leave(self, ask: Ask) -> None:
        """The client goes."""
        if self.desk.of(ask.parts[0].part_id) is not None:
            self.desk.forget(ask)
            self.answer(ask, "left")

    def answer(self, ask: Ask, kind: str) -> None:
        part_id = ask.parts[0].part_id
        self.answers[part_id] += 1
        assert self.answers[part_id] == 1, f"{part_id} was answered twice, now {kind}"
        assert self.desk.of(part_id) is None
        self.kinds[kind] += 1

    def lost(self, asks: list[Ask]) -> None:
        """Their group has gone, as its handle notices."""
        for ask in asks:
            if ask.parts[0].part_id in self.unread:
                self.desk.restart(ask)
            had = ask.delivered
            if self.desk.lost(ask):
                assert not had, "a request that had tokens was sent again"
                self.kinds["sent again"] += 1
                self.ask(ask, self.now_s + LOAD_WAIT_S)
            else:
                self.answer(ask, "failed")

    # --- groups ---------------------------------------------------------------------------------

    def round(self) -> None:
        """As a keeper does after every change; not while rounds are counted."""
        if not self.by_hand:
            self._begin_round()

    def _begin_round(self) -> int:
        """Reconcile, and begin what can be begun; the number of new actions."""
        hosted = {g.devices: list(g.replicas) for g in self.fleet.groups.values()}
        actions = self.fleet.steps(self.clock_s)
        jobs: list[Job] = []
        for action, before in zip(actions, waits_for(actions, hosted), strict=True):
            jobs.append(Job(action, [jobs[index] for index in before]))
        self.jobs += jobs
        self.advance()
        return len(actions)

    def advance(self) -> None:
        moved = True
        while moved:
            moved = False
            for job in self.jobs:
                if job.state == "pending" and any(w.state == "failed" for w in job.waits):
                    self.fleet.skip(job.action)
                    job.state, moved = "failed", True
                elif job.state == "pending" and all(w.state == "done" for w in job.waits):
                    self.begin(job)
                    moved = True
            self.jobs = [job for job in self.jobs if job.state in ("pending", "doing")]

    def begin(self, job: Job) -> None:
        action = job.action
        job.group = self.fleet.begin(action, self.clock_s)
        if job.group is None:
            self.fleet.skip(action)
            job.state = "failed"
            return
        job.state = "doing"
        name = job.group.name
        if isinstance(action, Start):
            for devices, _ in self.processes.values():
                assert not set(devices) & set(action.devices), "a device has two groups"
            assert not self.fleet.lost & set(action.devices), "a lost device was used"
            self.processes[name] = (action.devices, {})
        elif isinstance(action, Load) and name in self.processes:
            held = self.processes[name][1]
            held[action.model] = action.kv_tokens
            models, rooms = tuple(held), tuple(held.values())
            made = Group(action.devices, job.group.configuration, models, rooms)
            assert fits(made), f"memory of {name} is overcommitted: {made}"
        fails = not self.calm and self.rng.random() < 0.1 and isinstance(action, Start | Load)
        self.after(self.rng.uniform(0.05, 1.5), self.finish, job, fails, self.now_s + DRAIN_S)

    def finish(self, job: Job, fails: bool, until_s: float) -> None:
        action, group = job.action, job.group
        assert group is not None
        gone = group.name not in self.processes
        if not gone and isinstance(action, Stop | Unload) and self.now_s < until_s:
            models = [action.model] if isinstance(action, Unload) else list(group.replicas)
            seats = [self.fleet.router.seat(action.devices, model) for model in models]
            if any(seat is not None and seat.live for seat in seats):
                self.after(0.1, self.finish, job, fails, until_s)
                return
        if gone:
            self.fleet.failed(action, self.clock_s, "the group is gone")
            job.state = "failed"
        elif fails:
            if isinstance(action, Load):
                del self.processes[group.name][1][action.model]
            self.fleet.failed(action, self.clock_s, "a fault")
            if isinstance(action, Start):
                del self.processes[group.name]
            job.state = "failed"
        else:
            asks = self.at(group, action.model if isinstance(action, Unload) else None)
            if isinstance(action, Unload):
                del self.processes[group.name][1][action.model]
            elif isinstance(action, Stop):
                del self.processes[group.name]
            if isinstance(action, Stop | Unload):
                for ask in asks:  # what runs longer than the drain ends with an error
                    self.desk.forget(ask)
                    self.answer(ask, "cut off")
            left = self.fleet.done(action, self.clock_s)
            assert not left, left
            job.state = "done"
        self.advance()
        self.round()

    def at(self, group: LiveGroup, model: str | None) -> list[Ask]:
        """Requests that a group has."""
        asks = [
            self.asks[part_id]
            for seat in self.fleet.router.seats()
            if seat.devices == group.devices and model in (None, seat.model)
            for part_id in seat.live
        ]
        return list({id(ask): ask for ask in asks}.values())

    # --- faults ---------------------------------------------------------------------------------

    def fault(self) -> None:
        if self.calm:
            return
        self.after(self.rng.expovariate(0.5), self.fault)
        self.num_faults += 1
        kind = self.rng.choice(FAULTS)
        groups = list(self.fleet.groups.values())
        if kind == "kill" and groups:
            self.kill(self.rng.choice(groups))
        elif kind == "node" and len(self.fleet.lost) < self.num_devices - 1:
            self.fail_node(self.rng.randrange(self.num_devices))
        elif kind == "back" and self.fleet.lost:
            self.fleet.regain_devices({self.rng.choice(sorted(self.fleet.lost))})
        elif kind == "clock":
            self.jump_s += self.rng.choice((-1e6, -30.0, 30.0, 1e6))
        elif kind == "replan":
            self.fleet.desired = draw_placement(self.rng, self.num_devices)
        self.round()
        self.fleet.check_invariants()
        self.desk.check_invariants()

    def kill(self, group: LiveGroup) -> None:
        """Its handle tells of the requests first, then of the group."""
        self.processes.pop(group.name, None)
        for model in group.replicas:  # nobody is sent there any more once the handle knows
            self.fleet.router.shut(group.devices, model)
        self.lost(self.at(group, None))
        left = self.fleet.lose(group, self.clock_s, "it was killed")
        assert not left, left

    def fail_node(self, device: int) -> None:
        for group in list(self.fleet.groups.values()):
            if device in group.devices:
                self.kill(group)
        self.fleet.lose_devices({device}, self.clock_s, "its node is gone")

    # --- the end --------------------------------------------------------------------------------

    def settle(self) -> int:
        """A last blow, and no more faults: how many rounds lead to where nothing is left to do.

        What is under way ends first, and waits after failures are over by then.
        """
        self.calm = self.by_hand = True
        for group in list(self.fleet.groups.values()):
            if self.rng.random() < 0.4:
                self.kill(group)
        if self.rng.random() < 0.5 and len(self.fleet.lost) < self.num_devices - 1:
            self.fail_node(self.rng.randrange(self.num_devices))
        if self.rng.random() < 0.3:
            self.fleet.desired = draw_placement(self.rng, self.num_devices)
        while self.heap:
            self.step()
        self.now_s += 1000.0
        rounds = 0
        while self._begin_round():
            rounds += 1
            assert rounds <= 2, f"not converged after {rounds} rounds"
            while self.heap:
                self.step()
        return rounds

    def check_end(self) -> None:
        """All is as desired, and every request has had one answer."""
        self.fleet.check_invariants()
        self.desk.check_invariants()
        assert not self.jobs
        assert set(self.answers) == set(self.asks), "a request without an answer"
        wanted = {g.devices: (g.configuration, set(g.models)) for g in self.fleet.desired.groups}
        there = {
            g.devices: (g.configuration, {m for m, r in g.replicas.items() if r.state == "ready"})
            for g in self.fleet.groups.values()
        }
        assert there == wanted, (there, wanted)
        held = {devices: set(models) for devices, models in self.processes.values()}
        assert held == {devices: models for devices, (_, models) in wanted.items()}
        assert not self.fleet.observed(self.clock_s).busy


def storm(seed: int, num_events: int) -> Told:
    """One storm and the calm after it; raises AssertionError on a breach."""
    made = Storm(seed, 3 + seed % 5)
    made.after(0.0, made.round)
    made.after(0.0, made.arrive)
    made.after(1.0, made.fault)
    made.run(num_events)
    rounds = made.settle()
    made.check_end()
    return Told(made.num_events, len(made.asks), made.num_faults, dict(made.kinds), rounds)
