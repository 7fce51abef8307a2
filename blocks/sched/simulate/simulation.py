"""One seeded run: workload, faults, the scheduler's steps, and every check after each."""

import collections
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable

from blocks.sched.admission import QueueFull, Unservable
from blocks.sched.batch import Batch, Output
from blocks.sched.reference import ReferenceAllocator
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.scheduler import Scheduler
from blocks.sched.simulate.checks import check_batch, check_order
from blocks.sched.simulate.faults import FaultyAllocator
from blocks.sched.simulate.ledger import Ledger
from blocks.sched.simulate.memory import AllocatorFactory, Launch, Memory
from blocks.sched.simulate.options import Options
from blocks.sched.simulate.workload import Workload


@dataclasses.dataclass
class Summary:
    """What a run did; equal for equal seeds and code."""

    steps: int
    liveness_steps: int
    digest: str
    counts: dict[str, int]


@dataclasses.dataclass(slots=True)
class Out:
    """A batch that is out. is_void: it builds on a step that failed, and is taken for nothing."""

    batch: Batch
    launch: Launch
    is_void: bool = False


class Simulation:
    """One seeded run. `step` once per step, then `finish`; raises AssertionError on a breach."""

    def __init__(
        self,
        options: Options,
        make_allocator: AllocatorFactory = ReferenceAllocator,
        make_scheduler: Callable[..., Scheduler] = Scheduler,
    ) -> None:
        self.options = options
        self.rng = random.Random(options.seed + 1)
        self.now = 0.0
        self.num_steps = 0
        inner = make_allocator(options.num_blocks, options.block_size)
        self.allocator = FaultyAllocator(inner, self.rng, options.shortage_rate)
        self.memory = Memory(inner)
        self.workload = Workload(options, self.rng)
        self.scheduler = make_scheduler(
            self.allocator,
            token_budget=options.token_budget,
            max_num_seqs=options.max_num_seqs,
            max_model_len=options.max_model_len,
            policy=options.make_policy(),
            clock=lambda: self.now,
            max_waiting=options.max_waiting,
            watermark=options.watermark,
            max_in_flight=options.max_in_flight,
        )
        self.out: collections.deque[Out] = collections.deque()
        self.faults = True
        self.ledger = Ledger()
        self.poisoned: set[str] = set()
        self.cancels: dict[int, list[str]] = {}
        self.late: list[tuple[Batch, list[list[int]]]] = []
        names = ["tokens", "cancelled", "lost", "void", "late", "duplicate", "unservable"]
        self.counts = dict.fromkeys([*names, "queue_full"], 0)
        self._digest = hashlib.sha256()

    @property
    def live(self) -> dict[str, Request]:
        """The accepted requests that have not ended, by id."""
        return self.ledger.live

    # --- one step -------------------------------------------------------------------------------

    def step(self) -> None:
        """Arrivals and faults, one step of the scheduler, all checks."""
        self.num_steps += 1
        self._move_clock()
        if self.faults:
            self._arrive()
            self._meddle(in_flight=False)
        if not self._schedule() or len(self.out) == self.options.max_in_flight:
            is_due = True
        else:
            is_due = self.rng.random() < 0.2
        if self.faults:
            self._meddle(in_flight=True)
        if is_due and self.out:
            self._complete(self.out.popleft())
        self.scheduler.check_invariants()
        if self.num_steps % self.options.full_check_every == 0:
            self.allocator.inner.check_invariants()

    def _schedule(self) -> bool:
        """Send the next batch out; False where there was nothing to do."""
        refused = self.allocator.num_refused
        waited = {sequence.sequence_id for sequence in self._waiting()}
        batch = self.scheduler.schedule()
        check_batch(batch, self.options)
        check_order(batch, waited, self._waiting())
        assert self.scheduler.num_requests == len(self.live)
        # Work and no fault: the best running sequence, or the best waiting one, must go on.
        is_idle = not batch.entries and not self.out
        had_shortage = self.allocator.num_refused > refused
        assert not is_idle or had_shortage or not self.live, "idle although there is work"
        self._log("batch", [(e.sequence.sequence_id, *e[1:4]) for e in batch.entries])
        self._log("preempted", [sequence.sequence_id for sequence in batch.preempted])
        launch = self.memory.prepare(batch)
        if batch.entries:
            self.out.append(Out(batch, launch))
        return bool(batch.entries)

    def _waiting(self) -> list[Sequence]:
        live = itertools.chain.from_iterable(map(self.scheduler.sequences, self.live))
        return [sequence for sequence in live if sequence.state is State.WAITING]

    def _complete(self, out: Out) -> None:
        """Run the batch and bring its outcome to the scheduler, or not, or late, or twice."""
        options, chance = self.options, self._chance
        batch, launch = out.batch, out.launch
        if out.is_void:
            self.counts["void"] += 1
            self.memory.break_down(launch, copied=self.rng.random() < 0.5)
            drawn = [[0] * entry.num_samples for entry in batch.entries]
            end = [self.scheduler.fail, lambda batch: self.scheduler.update(batch, drawn)]
            found = self.rng.choice(end)(batch)
            assert found == [], "a step was taken that builds on a failed one"
            return
        poisoned = any(e.sequence.request.request_id in self.poisoned for e in batch.entries)
        if (poisoned and self.faults) or chance(options.failed_step_rate):
            self.memory.break_down(launch, copied=self.rng.random() < 0.5)
            self._fail(batch)
            return
        sampled = self.memory.run(launch)
        if chance(options.lost_rate):
            self.counts["lost"] += 1
            self.late.append((batch, sampled))
            self._fail(batch)
            return
        self._take(self.scheduler.update(batch, sampled), stoppable=True)
        if chance(options.duplicate_rate) and batch.entries:
            self.counts["duplicate"] += 1
            assert self.scheduler.update(batch, sampled) == [], "a duplicate completion was taken"

    def _fail(self, batch: Batch) -> None:
        """The step counts for nothing, nor does what came after it."""
        self._take(self.scheduler.fail(batch))
        for later in self.out:
            later.is_void = True

    def _take(self, outputs: list[Output], stoppable: bool = False) -> None:
        """Check what came out against the request computed alone; stop some samples."""
        self._log("outputs", [(o.sequence.sequence_id, o.token, o.finish_reason) for o in outputs])
        for sequence, token, reason in outputs:
            if token is not None:
                self.counts["tokens"] += 1
                assert sequence.tokens[-1] == token, sequence
            if reason is not None:
                self._end(sequence, reason)
            elif stoppable and self._chance(self.options.stop_rate):
                assert self.scheduler.stop(sequence.sequence_id), sequence
                self._end(sequence, FinishReason.STOP_STRING)
        requests = (output.sequence.request for output in outputs)
        self.ledger.settle(requests, self.scheduler.sequences)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        self.ledger.end(sequence, reason)
        self.memory.forget(sequence)

    def _log(self, kind: str, event: object) -> None:
        self._digest.update(f"{self.num_steps} {kind} {event}\n".encode())

    # --- the outside world ----------------------------------------------------------------------

    def _chance(self, rate: float) -> bool:
        return self.faults and self.rng.random() < rate

    def _move_clock(self) -> None:
        self.now += self.rng.random() * 0.1
        if self._chance(self.options.clock_jump_rate):
            self.now += self.rng.uniform(-1000, 1000)

    def _arrive(self) -> None:
        if self.rng.random() >= self.options.arrival_rate:
            return
        request = self.workload.draw()
        before = self.scheduler.num_requests, self.scheduler.num_waiting
        needed = -(
            -(len(request.prompt_tokens) + request.max_tokens - 1) // self.options.block_size
        )
        try:
            self.scheduler.add(request)
        except (Unservable, QueueFull) as error:
            name = "unservable" if isinstance(error, Unservable) else "queue_full"
            self.counts[name] += 1
            assert before == (self.scheduler.num_requests, self.scheduler.num_waiting)
            return
        total = len(request.prompt_tokens) + request.max_tokens
        assert total <= self.options.max_model_len, request
        assert needed <= self.allocator.num_usable_blocks, request
        self.ledger.accept(request)
        if self.rng.random() < self.options.poison_share:
            self.poisoned.add(request.request_id)
        if self.rng.random() < self.options.cancel_share:
            moment = self.num_steps + self.rng.randint(0, 30)
            self.cancels.setdefault(moment, []).append(request.request_id)

    def _meddle(self, in_flight: bool) -> None:
        """Cancels, quarantines and late completions, before and after a batch is scheduled."""
        if in_flight or self.rng.random() < 0.5:
            for request_id in self.cancels.pop(self.num_steps, ()):
                self._cancel(request_id)
        if self.live and self._chance(self.options.quarantine_rate):
            request_id = self.rng.choice(sorted(self.live))
            sequence = self.scheduler.sequences(request_id)[0]
            self._take(self.scheduler.fail_sequences([sequence.sequence_id]))
        if self.late and self._chance(self.options.late_rate * 10):
            self.counts["late"] += 1
            batch, sampled = self.late.pop()
            assert self.scheduler.update(batch, sampled) == [], "a late completion was taken"

    def _cancel(self, request_id: str) -> None:
        sequences = self.scheduler.sequences(request_id)
        assert self.scheduler.cancel(request_id) == (request_id in self.live), request_id
        self.counts["cancelled"] += bool(sequences)
        for sequence in sequences:
            self._end(sequence, FinishReason.CANCELLED)
        requests = [sequence.request for sequence in sequences]
        self.ledger.settle(requests, self.scheduler.sequences)

    # --- the end of the run ---------------------------------------------------------------------

    def liveness_bound(self) -> int:
        """Steps in which everything live must finish: the best running sequence gains a position
        each step, so no more than all positions there can be, plus one step per admission; with
        several batches out, each time they have all been filled and completed."""
        num_positions = 1 + self.ledger.num_positions()
        depth = self.options.max_in_flight
        return num_positions * (1 if depth == 1 else 2 * depth)

    def finish(self) -> Summary:
        """Faults off: everything finishes in time and every block comes back."""
        self.faults, self.allocator.rate = False, 0.0
        steps, bound = self.num_steps, self.liveness_bound()
        while self.live or self.out:
            assert self.num_steps - steps < bound, f"{len(self.live)} live after {bound} steps"
            self.step()
        self.scheduler.check_invariants()
        inner = self.allocator.inner
        inner.check_invariants()
        assert not self.scheduler.has_work()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        leaked = inner.num_usable_blocks - inner.num_free_blocks
        assert leaked == 0, f"{leaked} blocks leaked"
        counters = dataclasses.asdict(self.scheduler.counters)
        reasons = counters.pop("num_finished")
        counts = self.counts | {"shortages": self.allocator.num_refused} | counters
        counts |= {f"finished_{reason.value}": count for reason, count in reasons.items()}
        return Summary(steps, self.num_steps - steps, self._digest.hexdigest(), counts)


def simulate(
    options: Options,
    steps: int,
    make_allocator: AllocatorFactory = ReferenceAllocator,
    make_scheduler: Callable[..., Scheduler] = Scheduler,
    progress: Callable[[Simulation], None] | None = None,
) -> Summary:
    """Run ``steps`` steps with faults, then the liveness phase.

    Raises AssertionError naming seed and step; ``progress`` is called about every hundredth of the
    run.
    """
    simulation = Simulation(options, make_allocator, make_scheduler)
    try:
        for step in range(steps):
            simulation.step()
            if progress is not None and (step + 1) % max(1, steps // 100) == 0:
                progress(simulation)
        return simulation.finish()
    except Exception as error:
        where = f"seed {options.seed}, step {simulation.num_steps}"
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
