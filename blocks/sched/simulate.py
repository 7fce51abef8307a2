"""Drive a scheduler and an allocator with a seeded workload and seeded faults, and check them.

python -m blocks.sched.simulate --seed 1 --steps 100000

The model is a hash: the keys and values of a position are a number made of the tokens up to it,
kept in a simulated memory at the slot the allocator gave; a drawn token is a number made of the
keys and values *read back*. So a block shared wrongly, freed early, copied late or found too soon
shows as a wrong number, and every finished request is compared with the same one computed alone.

Faults: cancels and stops at any moment, failed steps that leave garbage behind, lost, late and
duplicate completions, requests that break every step they are in, allocator shortage, clock jumps.
After the faults comes a liveness phase: everything must finish within a proven number of steps and
every block must come back. Same seed and code, same digest of all events.
"""

import argparse
import dataclasses
import hashlib
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Entry, Output
from blocks.sched.policy import POLICIES, Policy, aged_priority
from blocks.sched.reference import ReferenceAllocator
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.scheduler import QueueFull, Scheduler, Unservable

GARBAGE = -1
VOCABULARY = 40
ENDED_FROM_OUTSIDE = {FinishReason.CANCELLED, FinishReason.FAILED, FinishReason.STOP_STRING}


class Slots(Protocol):
    """Where the positions of a sequence live."""

    def slots(self, start: int, stop: int) -> Iterable[int]: ...


@runtime_checkable
class PagedAllocator(Allocator, Protocol):
    """What the simulator needs of an allocator beyond the scheduler's needs."""

    def table(self, sequence_id: int) -> Slots: ...

    def take_copies(self) -> list[tuple[int, int]]: ...

    def check_invariants(self) -> None: ...


AllocatorFactory = Callable[[int, int], PagedAllocator]
"""``factory(num_usable_blocks, block_size)``"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a run depends on; rates are chances per step unless said otherwise."""

    seed: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    token_budget: int
    max_model_len: int
    policy: str
    aging_s: float
    watermark: float
    max_waiting: int
    arrival_rate: float
    cancel_share: float = 0.05  # of requests
    stop_rate: float = 0.01
    quarantine_rate: float = 0.002
    poison_share: float = 0.002  # of requests
    shortage_rate: float = 0.001  # of allocator calls
    failed_step_rate: float = 0.01
    lost_rate: float = 0.01
    late_rate: float = 0.01
    duplicate_rate: float = 0.01
    clock_jump_rate: float = 0.01
    full_check_every: int = 16

    @classmethod
    def from_seed(cls, seed: int) -> "Options":
        """Sizes small enough to be short of everything, drawn from the seed."""
        rng = random.Random(seed)
        block_size = rng.choice([1, 2, 4, 4, 8, 16])
        max_model_len = rng.randint(12, 72)
        least = -(-max_model_len // block_size)
        max_num_seqs = rng.choice([1, 2, 4, 8, 12])
        return cls(
            seed=seed,
            num_blocks=int(least * rng.uniform(0.8, 4)) + 1,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            token_budget=max_num_seqs + rng.choice([0, 1, 5, 16, 64]),
            max_model_len=max_model_len,
            policy=rng.choice(sorted(POLICIES)),
            aging_s=rng.choice([0.1, 1.0, 100.0]),
            watermark=rng.choice([0.0, 0.01, 0.2]),
            max_waiting=rng.choice([2, 8, 16]),
            arrival_rate=rng.choice([0.1, 0.3, 0.9]),
        )

    def make_policy(self) -> str | Policy:
        return aged_priority(self.aging_s) if self.policy == "priority" else self.policy


class FaultyAllocator:
    """Passes everything on, but says "not now" at random while ``rate`` is above 0."""

    def __init__(self, inner: PagedAllocator, rng: random.Random, rate: float) -> None:
        self.inner = inner
        self.rng = rng
        self.rate = rate
        self.num_refused = 0
        self.block_size = inner.block_size
        self.num_usable_blocks = inner.num_usable_blocks
        self.match_prefix = inner.match_prefix
        self.commit = inner.commit
        self.fork = inner.fork
        self.free = inner.free

    @property
    def num_free_blocks(self) -> int:
        return self.inner.num_free_blocks

    def allocate(
        self, sequence_id: int, tokens: list[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        if self._refuses():
            return None
        return self.inner.allocate(sequence_id, tokens, num_tokens, namespace)

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        return not self._refuses() and self.inner.append(sequence_id, num_tokens)

    def _refuses(self) -> bool:
        refused = self.rng.random() < self.rate
        self.num_refused += refused
        return refused


def mix(state: int, token: int) -> int:
    """The keys and values of a position: those of the position before it, and its token."""
    return (state * 6364136223846793005 + token * 2 + 1442695040888963407) % 2**64


def draw(state: int, index: int) -> int:
    """The token that sample ``index`` draws after a position."""
    return (mix(state, index) >> 33) % VOCABULARY


def states(tokens: list[int], namespace: str, known: list[int] | None = None) -> list[int]:
    """Keys and values of all positions; ``known`` holds leading ones and is extended in place."""
    known = [] if known is None else known
    state = known[-1] if known else zlib.crc32(namespace.encode())
    for token in tokens[len(known) :]:
        state = mix(state, token)
        known.append(state)
    return known


def generate_alone(request: Request, index: int) -> list[int]:
    """What sample ``index`` of a request must draw, computed without scheduler or cache."""
    state = states(list(request.prompt_tokens), request.namespace)[-1]
    enders = set(request.stop_token_ids)
    if not request.ignore_eos:
        enders |= set(request.eos_token_ids)
    output: list[int] = []
    while len(output) < request.max_tokens:
        output.append(draw(state, index))
        if output[-1] in enders and len(output) >= request.min_tokens:
            break
        state = mix(state, output[-1])
    return output


class Workload:
    """Draws requests: shared prefixes, repeated prompts, several samples, priorities, all sizes."""

    def __init__(self, options: Options, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.num_drawn = 0
        longest = options.max_model_len - 1
        self.prefixes = [self._tokens(rng.randint(1, longest)) for _ in range(4)]

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(count)]

    def draw(self) -> Request:
        """The next request; about one in twenty can never be served."""
        rng, limit = self.rng, self.options.max_model_len
        prompt = list(rng.choice(self.prefixes)) if rng.random() < 0.7 else []
        if not prompt or rng.random() < 0.8:
            prompt += self._tokens(rng.randint(1, 6))
        prompt = prompt[: limit - 1]
        room = limit - len(prompt)
        max_tokens = room + 5 if rng.random() < 0.05 else rng.randint(1, room)
        self.num_drawn += 1
        return Request(
            request_id=f"r{self.num_drawn}",
            prompt_tokens=prompt,
            max_tokens=max_tokens,
            num_samples=rng.choice([1, 1, 1, 2, 3, 6]),
            priority=rng.randint(0, 3),
            eos_token_ids=(0,),
            stop_token_ids=rng.choice([(), (1,), (0, 2)]),
            min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
            ignore_eos=rng.random() < 0.3,
            namespace=rng.choice(["", "", "tenant"]),
        )


class Launch(NamedTuple):
    """A batch made ready to run: what a runner reads off the tables right after `schedule`."""

    entries: list[Entry]
    slots: list[list[int]]  # per entry, of positions [0, start + num_tokens)
    tokens: list[list[int]]  # per entry, of the same positions
    copies: list[tuple[int, int]]


class Memory:
    """The simulated device: writes keys and values to slots and reads back as attention would.

    A launch runs whole, whatever became of its sequences meanwhile.
    """

    def __init__(self, allocator: PagedAllocator) -> None:
        self.allocator = allocator
        self._cells: dict[int, int] = {}
        self._states: dict[int, list[int]] = {}

    def prepare(self, batch: Batch) -> Launch:
        """Take everything the step needs from the sequences and their tables."""
        slots, tokens = [], []
        for sequence, start, num_tokens, _, _ in batch.entries:
            stop = start + num_tokens
            slots.append(list(self.allocator.table(sequence.sequence_id).slots(0, stop)))
            tokens.append(sequence.tokens[:stop])
        return Launch(batch.entries, slots, tokens, self.allocator.take_copies())

    def run(self, launch: Launch) -> list[list[int]]:
        """Copies, then all writes, then all reads; the tokens drawn per entry."""
        self._copy(launch)
        expected = []
        for entry, slots, tokens in zip(*launch[:3], strict=True):
            sequence, start = entry.sequence, entry.start
            known = self._states.setdefault(sequence.sequence_id, [])
            expected.append(states(tokens, sequence.request.namespace, known)[: len(tokens)])
            self._cells.update(zip(slots[start:], expected[-1][start:], strict=True))
        return [
            self._read_and_draw(entry, slots, values)
            for entry, slots, values in zip(launch.entries, launch.slots, expected, strict=True)
        ]

    def break_down(self, launch: Launch, copied: bool) -> None:
        """A step that raises half-way: copies perhaps done, garbage where it was to write."""
        if copied:
            self._copy(launch)
        for entry, slots in zip(launch.entries, launch.slots, strict=True):
            self._cells.update(dict.fromkeys(slots[entry.start :], GARBAGE))

    def forget(self, sequence: Sequence) -> None:
        """The sequence is over."""
        self._states.pop(sequence.sequence_id, None)

    def _read_and_draw(self, entry: Entry, slots: list[int], expected: list[int]) -> list[int]:
        read = [self._cells.get(slot, GARBAGE) for slot in slots]
        if read != expected:
            first = next(i for i in range(len(read)) if read[i] != expected[i])
            raise AssertionError(f"{entry.sequence} reads wrong keys and values at {first}")
        if entry.num_samples == 1:
            return [draw(read[-1], entry.sequence.index)]
        return [draw(read[-1], index) for index in range(entry.num_samples)]

    def _copy(self, launch: Launch) -> None:
        size = self.allocator.block_size
        for source, target in launch.copies:
            for offset in range(size):
                value = self._cells.get(source * size + offset, GARBAGE)
                self._cells[target * size + offset] = value


@dataclasses.dataclass
class Summary:
    """What a run did; equal for equal seeds and code."""

    steps: int
    liveness_steps: int
    digest: str
    counts: dict[str, int]


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
        )
        self.faults = True
        self.live: dict[str, Request] = {}
        self.ended: dict[str, dict[int, FinishReason]] = {}
        self.poisoned: set[str] = set()
        self.cancels: dict[int, list[str]] = {}
        self.late: list[tuple[Batch, list[list[int]]]] = []
        self.counts = dict.fromkeys(
            ("tokens", "cancelled", "lost", "late", "duplicate", "unservable", "queue_full"), 0
        )
        self._digest = hashlib.sha256()

    # --- one step -------------------------------------------------------------------------------

    def step(self) -> None:
        """Arrivals and faults, one step of the scheduler, all checks."""
        self.num_steps += 1
        self._move_clock()
        if self.faults:
            self._arrive()
            self._meddle(in_flight=False)
        refused = self.allocator.num_refused
        batch = self.scheduler.schedule()
        self._check_batch(batch, shortage=self.allocator.num_refused > refused)
        self._log("batch", [(e.sequence.sequence_id, *e[1:4]) for e in batch.entries])
        self._log("preempted", [sequence.sequence_id for sequence in batch.preempted])
        launch = self.memory.prepare(batch)
        if self.faults:
            self._meddle(in_flight=True)
        self._complete(batch, launch)
        self.scheduler.check_invariants()
        if self.num_steps % self.options.full_check_every == 0:
            self.allocator.inner.check_invariants()

    def _complete(self, batch: Batch, launch: Launch) -> None:
        """Run the batch and bring its outcome to the scheduler, or not, or late, or twice."""
        options, chance = self.options, self._chance
        poisoned = any(e.sequence.request.request_id in self.poisoned for e in batch.entries)
        if (poisoned and self.faults) or chance(options.failed_step_rate):
            self.memory.break_down(launch, copied=self.rng.random() < 0.5)
            self._take(self.scheduler.fail(batch))
            return
        sampled = self.memory.run(launch)
        if chance(options.lost_rate):
            self.counts["lost"] += 1
            self.late.append((batch, sampled))
            self._take(self.scheduler.fail(batch))
            return
        self._take(self.scheduler.update(batch, sampled), stoppable=True)
        if chance(options.duplicate_rate) and batch.entries:
            self.counts["duplicate"] += 1
            assert self.scheduler.update(batch, sampled) == [], "a duplicate completion was taken"

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
        self._settle(output.sequence.request for output in outputs)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        assert sequence.state is State.FINISHED, sequence
        assert sequence.finish_reason is reason, (sequence, reason)
        expected = generate_alone(request, sequence.index)
        output = sequence.output_tokens
        if reason in ENDED_FROM_OUTSIDE:
            assert output == expected[: len(output)], (sequence, output, expected)
        else:
            assert output == expected, (sequence, reason, output, expected)
        ended = self.ended.setdefault(request.request_id, {})
        assert sequence.index not in ended, f"{sequence} ended twice"
        ended[sequence.index] = reason
        self.memory.forget(sequence)

    def _settle(self, requests: Iterable[Request]) -> None:
        """Strike off requests that ended: with every sample, or from outside before the fork."""
        for request in requests:
            request_id = request.request_id
            if request_id in self.live and not self.scheduler.sequences(request_id):
                del self.live[request_id]
                ended = self.ended.pop(request_id)
                before_fork = set(ended) == {0} and ended[0] in ENDED_FROM_OUTSIDE
                assert len(ended) == request.num_samples or before_fork, (request, ended)

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
        self.live[request.request_id] = request
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
        self._settle([sequence.request for sequence in sequences])

    # --- checks ---------------------------------------------------------------------------------

    def _check_batch(self, batch: Batch, shortage: bool) -> None:
        options = self.options
        assert sum(entry.num_tokens for entry in batch.entries) == batch.num_tokens
        assert batch.num_tokens <= options.token_budget, batch.num_tokens
        assert len(batch) <= options.max_num_seqs, len(batch)
        assert self.scheduler.num_requests == len(self.live)
        scheduled = {entry.sequence for entry in batch.entries}
        assert len(scheduled) == len(batch), "a sequence is in the batch twice"
        assert not scheduled & set(batch.preempted), "a preempted sequence is scheduled"
        for entry in batch.entries:
            sequence = entry.sequence
            assert sequence.state in (State.PREFILLING, State.DECODING), sequence
            is_last = entry.start + entry.num_tokens == len(sequence.tokens)
            assert (entry.num_samples > 0) == is_last, entry
        # Work and no fault: the best running sequence, or the best waiting one, must go on.
        assert batch.entries or shortage or not self.live, "idle although there is work"

    def _log(self, kind: str, event: object) -> None:
        self._digest.update(f"{self.num_steps} {kind} {event}\n".encode())

    def liveness_bound(self) -> int:
        """Steps in which everything live must finish: the best running sequence gains a position
        each step, so no more than all positions there can be, plus one step per admission."""
        return 1 + sum(
            (len(request.prompt_tokens) + request.max_tokens + 1) * request.num_samples
            for request in self.live.values()
        )

    def finish(self) -> Summary:
        """Faults off: everything finishes in time and every block comes back."""
        self.faults, self.allocator.rate = False, 0.0
        steps, bound = self.num_steps, self.liveness_bound()
        while self.live:
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


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate the scheduler with seeded faults.")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--steps", type=int, default=100_000, help="steps per seed")
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        options = Options.from_seed(seed)
        print(options)
        began = time.monotonic()

        def show(simulation: Simulation) -> None:
            scheduler = simulation.scheduler
            print(
                f"\r{simulation.num_steps:>9} of {arguments.steps} steps, "
                f"{scheduler.num_running} running, {scheduler.num_waiting} waiting, "
                f"{scheduler.counters.num_requests} requests ",
                end="",
                file=sys.stderr,
                flush=True,
            )

        try:
            summary = simulate(options, arguments.steps, progress=show)
        except AssertionError as error:
            print(f"\n{error}")
            return 1
        print(file=sys.stderr)
        print(", ".join(f"{name} {count}" for name, count in summary.counts.items()))
        print(
            f"seed {seed}: {summary.steps} + {summary.liveness_steps} steps in "
            f"{time.monotonic() - began:.1f} s, 0 leaked blocks, digest {summary.digest}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
