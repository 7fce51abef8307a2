"""Planted bugs in the scheduler, and a run of the simulator that looks for one of them.

A mutant is a piece of the source replaced by a wrong one. ``python -m tests.sched.mutants NAME``
prints who caught it and exits 0, or exits 1; without a name the sources as they are must pass the
same runs.
"""

import dataclasses
import importlib
import inspect
import sys
import types
from typing import Any

from blocks.sched.request import Sequence
from blocks.sched.simulate import Options, simulate

SEEDS, STEPS = range(100), 500  # at most 50,000 steps until a mutant is caught


def options(seed: int) -> Options:
    """More faults than usual, so that rare coincidences come soon."""
    return dataclasses.replace(
        Options.from_seed(seed), cancel_share=0.3, failed_step_rate=0.05, stop_rate=0.03
    )


MUTANTS: dict[str, tuple[str, str, str]] = {
    "blocks are not freed": (
        "holdings",
        "            self.allocator.free(sequence.sequence_id, num_valid)\n",
        "",
    ),
    "blocks are freed twice": (
        "holdings",
        "            self.allocator.free(sequence.sequence_id, num_valid)\n",
        "            self.allocator.free(sequence.sequence_id, num_valid)\n" * 2,
    ),
    "preemption keeps the progress": (
        "holdings",
        "sequence.num_computed = sequence.num_slots = 0",
        "sequence.num_slots = 0",
    ),
    "chunk beyond the budget": (
        "batch_builder",
        "num_tokens = min(budget, len(sequence.tokens) - start)",
        "num_tokens = len(sequence.tokens) - start",
    ),
    "lost wake-up": (
        "holdings",
        "if others_run and (attempt == self._blocked or",
        "if attempt == self._blocked or (others_run and",
    ),
    "stale batch accepted": (
        "scheduler",
        "        if batch in self._in_flight:\n",
        "        if batch.entries:\n",
    ),
    "stale entry accepted": ("holdings", "        sequence.epoch += 1\n", ""),
    "fork shares nothing": (
        "holdings",
        "self.allocator.fork(parent.sequence_id, child.sequence_id)",
        "self.allocator.allocate(child.sequence_id, child.tokens, parent.num_slots)",
    ),
    "fork writes into the shared block": (
        "holdings",
        "child.num_computed = child.num_slots = parent.num_slots = parent.num_computed",
        "child.num_computed, child.num_slots = parent.num_computed, parent.num_slots",
    ),
    "ended sequence stays in its queue": (
        "roster",
        '        """The sequence is over; its request too with the last sample."""\n'
        "        self._dequeue(sequence)\n",
        "",
    ),
    "commit beyond what is computed": (
        "holdings",
        "num_valid = sequence.num_computed if num_valid_tokens is None else num_valid_tokens",
        "num_valid = len(sequence.tokens)",
    ),
    "failed step stays findable": (
        "holdings",
        "self.allocator.free(sequence.sequence_id, num_valid)",
        "self.allocator.free(sequence.sequence_id)",
    ),
    "step after a failed one is taken": (
        "scheduler",
        "        back = failed + self._in_flight.live_after(batch)\n",
        "        back = list(failed)\n",
    ),
    "token computed before it is known": (
        "batch_builder",
        "            if sequence.num_scheduled > start:\n                continue",
        "            if False:\n                continue",
    ),
    "chunk computed twice": (
        "batch_builder",
        "        start = sequence.num_scheduled\n",
        "        start = sequence.num_computed\n",
    ),
    "share of a batch rounded down": (
        "batch_builder",
        "share = -(-len(decoding) // num_batches)",
        "share = len(decoding) // num_batches",
    ),
    "failed step is taken for done": (
        "scheduler",
        "            self._lifecycle.roll_back(sequence)\n",
        "            sequence.num_computed += 1\n",
    ),
    "best one is preempted": (
        "roster",
        "return max(tails, key=_KEY)",
        "return min(tails, key=_KEY)",
    ),
    "suspects run together": (
        "suspicion",
        "return len(self.running()) < self.limit",
        "return True",
    ),
    "admission after a preemption": (
        "batch_builder",
        "        if not preempted:\n",
        "        if True:\n",
    ),
    "last one waiting goes first": ("batch_builder", "roster.waiting[0]", "roster.waiting[-1]"),
    "more run than allowed": (
        "batch_builder",
        "roster.num_running < self._max_num_seqs:",
        "roster.num_running <= self._max_num_seqs:",
    ),
    "forks take places that are not there": (
        "lifecycle",
        "has_place = self._roster.num_running < self._max_num_seqs",
        "has_place = True",
    ),
    "samples fork again after a preemption": ("lifecycle", "        parent.samples_due = 1\n", ""),
    "namespaces share blocks": (
        "holdings",
        "len(tokens), namespace)",
        'len(tokens), "")',
    ),
    "request that cannot fit is accepted": (
        "admission",
        "if num_blocks > num_usable_blocks:",
        "if num_blocks > num_usable_blocks + 1:",
    ),
    "one token too many": (
        "request",
        "len(self.tokens) >= self.max_len",
        "len(self.tokens) > self.max_len",
    ),
    "stop before min_tokens": (
        "request",
        "token in self.stop_tokens and self.num_output >= self.request.min_tokens",
        "token in self.stop_tokens",
    ),
    "waiting tokens are not given back": (
        "roster",
        "            self.num_waiting_tokens -= len(sequence.tokens)\n",
        "            pass\n",
    ),
    "copy on write without the copy": (
        "reference",
        "            self._copies.append((source, blocks[last]))\n",
        "",
    ),
    "reused block stays findable": (
        "reference",
        "        block, _ = self._free.popitem(last=False)\n        self._forget(block)\n",
        "        block, _ = self._free.popitem(last=False)\n",
    ),
    "claimed prefix is committed by who did not fill it": (
        "reference",
        "for i in range(table.num_committed, num_tokens // self.block_size):",
        "for i in range(num_tokens // self.block_size):",
    ),
    "one block too few": (
        "reference",
        "num_new = -(-num_tokens // self.block_size) - len(hits)",
        "num_new = (num_tokens - 1) // self.block_size - len(hits)",
    ),
    "claimed prefix without an owner": (
        "reference",
        "        for block in hits:\n            self._refs[block] += 1\n",
        "        for block in hits:\n            self._refs[block] += not self._refs[block]\n",
    ),
}


TARGETS = {
    "scheduler": "Scheduler",
    "batch_builder": "BatchBuilder",
    "holdings": "Holdings",
    "lifecycle": "Lifecycle",
    "suspicion": "Suspicion",
    "intake": "Intake",
    "roster": "Roster",
    "request": "Sequence",
    "admission": "check_servable",
    "reference": "ReferenceAllocator",
}
USERS = {"request": "lifecycle", "admission": "intake"}
"""Who uses what a module defines, where it is not the scheduler itself."""


def load(module: str, before: str = "", after: str = "") -> dict[str, Any]:
    """The names of a module whose source has ``before`` replaced; other classes stay the same."""
    original = importlib.import_module(f"blocks.sched.{module}")
    source = inspect.getsource(original)
    if before:
        assert source.count(before) == 1, f"{module}.py has no single {before!r}"
        source = source.replace(before, after)
    names = types.ModuleType(original.__name__).__dict__
    exec(compile(source, f"{module}.py (mutant)", "exec"), names)
    for name, value in vars(original).items():
        if inspect.isclass(value) and name != TARGETS[module]:
            names[name] = value
    return names


def build(module: str, before: str, after: str) -> dict[str, Any]:
    """Scheduler and allocator with one module mutated."""
    names = load(module, before, after)
    target = names[TARGETS[module]]
    if module == "reference":
        return {"make_allocator": target}
    if module == "scheduler":
        return {"make_scheduler": target}
    if module == "request":  # the same class to everybody, but for the method that is mutated
        methods = {"__slots__": (), "stop_reason": target.stop_reason}
        target = type("Sequence", (Sequence,), methods)
    if module in USERS:
        user = load(USERS[module])
        user[TARGETS[module]] = target
        module, target = USERS[module], user[TARGETS[USERS[module]]]
    scheduler = load("scheduler")
    scheduler[TARGETS[module]] = target
    return {"make_scheduler": scheduler["Scheduler"]}


def hunt(name: str) -> str | None:
    """What caught the mutant; None when nothing did."""
    classes = build(*MUTANTS[name])
    for seed in SEEDS:
        try:
            simulate(options(seed), STEPS, **classes)
        except AssertionError as error:
            if isinstance(error.__cause__, AttributeError | NameError | TypeError):
                raise ValueError(f"{name!r} is no mutant, it does not even run") from error
            return str(error)
    return None


def main() -> int:
    if len(sys.argv) == 1:
        for module in TARGETS:
            for seed in SEEDS[:10]:
                simulate(options(seed), STEPS, **build(module, "", ""))
        return 0
    caught = hunt(sys.argv[1])
    print(caught)
    return caught is None


if __name__ == "__main__":
    sys.exit(main())
