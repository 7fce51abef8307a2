"""Any order of calls, against a dictionary of what every request must be."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from blocks.sched import (
    Batch,
    FinishReason,
    Output,
    QueueFull,
    Request,
    Scheduler,
    Sequence,
    State,
    Unservable,
)
from blocks.sched.reference import ReferenceAllocator

NUM_BLOCKS, BLOCK_SIZE, BUDGET, PLACES, LONGEST = 5, 3, 7, 3, 18
EOS = 0


@dataclasses.dataclass
class Model:
    """A request as the machine knows it: tokens drawn per sample, and which samples are over."""

    request: Request
    drawn: dict[int, list[int]]
    over: dict[int, FinishReason]


@dataclasses.dataclass
class Out:
    """A batch that is out, and those of its sequences whose entries still count."""

    batch: Batch
    counted: set[Sequence]


class SchedulerMachine(RuleBasedStateMachine):
    stale = Bundle("stale")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = ReferenceAllocator(NUM_BLOCKS, BLOCK_SIZE)
        self.now = 0.0
        self.models: dict[str, Model] = {}
        self.out: list[Out] = []
        self.num_added = 0

    @initialize(max_in_flight=st.sampled_from([1, 2, 3]))
    def start(self, max_in_flight: int) -> None:
        self.scheduler = Scheduler(
            self.allocator,
            token_budget=BUDGET,
            max_num_seqs=PLACES,
            max_model_len=LONGEST,
            policy="priority",
            clock=lambda: self.now,
            max_waiting=4,
            max_in_flight=max_in_flight,
        )

    def has_room(self) -> bool:
        return len(self.out) < self.scheduler.max_in_flight

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=8),
        max_tokens=st.integers(1, 11),
        num_samples=st.integers(1, 4),
        priority=st.integers(-1, 1),
        min_tokens=st.integers(0, 2),
        ignore_eos=st.booleans(),
        namespace=st.sampled_from(["", "tenant"]),
    )
    def add(self, prompt: list[int], max_tokens: int, min_tokens: int, **options: object) -> None:
        self.num_added += 1
        request = Request(
            request_id=f"r{self.num_added}",
            prompt_tokens=prompt,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            eos_token_ids=(EOS,),
            **options,  # type: ignore[arg-type]
        )
        total = len(prompt) + max_tokens
        fits = total <= LONGEST and -(-(total - 1) // BLOCK_SIZE) <= NUM_BLOCKS
        try:
            self.scheduler.add(request)
        except Unservable:
            assert not fits
        except QueueFull:
            assert fits
            assert self.scheduler.num_waiting >= 4
        else:
            assert fits
            self.models[request.request_id] = Model(request, {0: []}, {})

    @precondition(has_room)
    @rule()
    def schedule(self) -> None:
        live = [s for name in self.models for s in self.scheduler.sequences(name)]
        waiting = {s for s in live if s.state is State.WAITING}
        batch = self.scheduler.schedule()
        assert batch.num_tokens == sum(entry.num_tokens for entry in batch.entries) <= BUDGET
        if not self.out:
            assert bool(batch.entries) == bool(self.models), "work is done whenever there is any"
        under_way = {s: s.state for out in self.out for s in out.counted}
        for entry in batch.entries:
            sequence = entry.sequence
            assert sequence.request.request_id in self.models
            assert under_way.get(sequence) is not State.DECODING, "its token is not known"
            table = self.allocator.table(sequence.sequence_id)
            assert len(table.block_ids) * BLOCK_SIZE >= entry.start + entry.num_tokens
        admitted = {s for s in waiting if s.state is not State.WAITING}
        worst_admitted = max((s.key for s in admitted), default=())
        assert all(s.key > worst_admitted for s in waiting - admitted), "out of turn"
        if batch.preempted:
            assert not admitted
            kept = [s.key for s in live if s.state in (State.PREFILLING, State.DECODING)]
            assert all(s.key > max(kept, default=()) for s in batch.preempted), "not the worst"
        for out in self.out:
            out.counted.difference_update(batch.preempted)
        if batch.entries:
            self.out.append(Out(batch, {entry.sequence for entry in batch.entries}))

    @precondition(lambda self: self.out)
    @rule(target=stale, data=st.data())
    def update(self, data: st.DataObject) -> Batch:
        out = self.out.pop(0)
        batch = out.batch
        token = st.integers(0, 6)
        sampled = [
            data.draw(st.lists(token, min_size=e.num_samples, max_size=e.num_samples))
            for e in batch.entries
        ]
        expected: list[tuple[str, int, int]] = []
        for entry, tokens in zip(batch.entries, sampled, strict=True):
            sequence = entry.sequence
            if sequence in out.counted and sequence.state is not State.FINISHED:
                name = sequence.request.request_id
                indices = range(len(tokens)) if len(tokens) > 1 else [sequence.index]
                expected += [(name, i, t) for i, t in zip(indices, tokens, strict=False)]
        outputs = self.scheduler.update(batch, sampled)
        got = [(o.sequence.request.request_id, o.sequence.index, o.token) for o in outputs]
        assert got == expected
        for name, index, token_id in expected:
            self.models[name].drawn.setdefault(index, []).append(token_id)
        self._take(outputs)
        return batch

    @precondition(lambda self: self.out)
    @rule(target=stale, data=st.data())
    def fail(self, data: st.DataObject) -> Batch:
        """Of any batch: what came after it counts for nothing either."""
        at = data.draw(st.integers(0, len(self.out) - 1))
        for later in self.out[at:]:
            later.counted.clear()
        batch = self.out.pop(at).batch
        self._take(self.scheduler.fail(batch))
        return batch

    @precondition(lambda self: len(self.out) > 1)
    @rule(data=st.data())
    def update_out_of_order(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(1, len(self.out) - 1))
        with pytest.raises(RuntimeError, match="batches end in the order"):
            self.scheduler.update(self.out[at].batch, [])

    @precondition(lambda self: self.models)
    @rule(data=st.data(), steps=st.integers(1, 4))
    def run(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            while self.has_room():
                count = len(self.out)
                self.schedule()
                if len(self.out) == count:
                    break
            if self.out:
                self.update(data)
            self.invariants_hold()

    @rule(batch=consumes(stale))
    def complete_again(self, batch: Batch) -> None:
        sampled = [[1] * entry.num_samples for entry in batch.entries]
        assert self.scheduler.update(batch, sampled) == []
        assert self.scheduler.fail(batch) == []

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        assert self.scheduler.cancel(name)
        assert not self.scheduler.cancel(name)
        del self.models[name]

    @precondition(lambda self: self.models)
    @rule(data=st.data(), failed=st.booleans())
    def end_one(self, data: st.DataObject, failed: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        sequence = data.draw(st.sampled_from(self.scheduler.sequences(name)))
        if failed:
            self._take(self.scheduler.fail_sequences([sequence.sequence_id]))
        else:
            assert self.scheduler.stop(sequence.sequence_id)
            self._take([Output(sequence, None, FinishReason.STOP_STRING)])

    @rule(seconds=st.floats(-100, 100))
    def jump(self, seconds: float) -> None:
        self.now += seconds

    def _take(self, outputs: list[Output]) -> None:
        for sequence, _, reason in outputs:
            if reason is not None:
                model = self.models[sequence.request.request_id]
                assert sequence.index not in model.over
                self._check_reason(model, sequence.output_tokens, reason)
                model.over[sequence.index] = reason
        for name, model in list(self.models.items()):
            if set(model.drawn) <= set(model.over):
                del self.models[name]

    def _check_reason(self, model: Model, output: list[int], reason: FinishReason) -> None:
        request = model.request
        if reason is FinishReason.EOS:
            assert output[-1] == EOS, output
            assert len(output) >= request.min_tokens, output
            assert not request.ignore_eos
        elif reason is FinishReason.LENGTH:
            assert len(output) == request.max_tokens, output

    @invariant()
    def dictionary_and_scheduler_agree(self) -> None:
        assert self.scheduler.num_requests == len(self.models)
        for name, model in self.models.items():
            live = {s.index: s for s in self.scheduler.sequences(name)}
            assert set(live) == set(model.drawn) - set(model.over), (name, live)
            for index, sequence in live.items():
                drawn = model.drawn[index]
                assert sequence.output_tokens == drawn
                enough = len(drawn) >= max(1, model.request.min_tokens)
                ended = enough and drawn[-1] == EOS and not model.request.ignore_eos
                assert not ended, f"{sequence} should have ended"
                assert len(drawn) < model.request.max_tokens

    @invariant()
    def invariants_hold(self) -> None:
        self.scheduler.check_invariants()
        self.allocator.check_invariants()
        if not self.models:
            assert self.allocator.num_free_blocks == NUM_BLOCKS, "blocks leaked"

    def teardown(self) -> None:
        """Whatever happened, everything left finishes and every block comes back."""
        for out in self.out:
            self._take(self.scheduler.fail(out.batch))
        for _ in range(2000):
            if not self.scheduler.has_work():
                break
            batch = self.scheduler.schedule()
            assert batch.entries, "idle although there is work"
            self.scheduler.update(batch, [[1] * entry.num_samples for entry in batch.entries])
        assert not self.scheduler.has_work()
        assert self.allocator.num_free_blocks == NUM_BLOCKS


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(stateful_step_count=80)
