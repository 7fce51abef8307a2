"""State machines: the real classes in lockstep with the naive ones, whatever is asked of them.

Hypothesis draws which operations happen and a seed for each; the seed decides the details, and
`churn` makes histories long. Each machine takes the class under test from an attribute, so that the
same machine also runs against versions with a planted bug (see test_mutants.py).
"""

import hashlib
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blocks.kv import BlockManager, BlockPool, Prefix, PrefixCache
from tests.kv.naive import Handle, NaiveManager, NaivePool, NaivePrefixes

RANDOM = st.randoms(use_true_random=True)
NAMESPACES = ("", "a", "b")


def some(random: Random, items, most: int) -> list:
    """Up to ``most`` distinct ones of ``items``, in any order."""
    items = sorted(items)
    return random.sample(items, random.randint(0, min(most, len(items))))


class PoolMachine(RuleBasedStateMachine):
    """BlockPool against a list of free blocks and a dictionary of owners."""

    pool_class = BlockPool

    @initialize(num_blocks=st.integers(2, 9))
    def start(self, num_blocks):
        self.evicted = []
        self.pool = self.pool_class(num_blocks, on_evict=self.evicted.append)
        self.naive = NaivePool(num_blocks)

    def owned(self):
        return [b for b, count in self.naive.refs.items() if count]

    @rule(random=RANDOM)
    def allocate(self, random):
        count = random.randint(0, len(self.naive.order))
        assert self.pool.allocate(count) == self.naive.allocate(count)

    @rule(random=RANDOM)
    def retain(self, random):
        blocks = some(random, {*self.owned(), *self.naive.findable}, 3)
        blocks += some(random, blocks, 1)
        self.pool.retain(blocks)
        self.naive.retain(blocks)

    @rule(random=RANDOM)
    def release(self, random):
        owners = [b for b, count in self.naive.refs.items() for _ in range(count)]
        blocks = some(random, owners, 4)
        self.pool.release(blocks)
        self.naive.release(blocks)

    @rule(random=RANDOM)
    def mark_findable(self, random):
        blocks = some(random, self.owned(), 3)
        self.pool.mark_findable(blocks)
        self.naive.findable.update(blocks)

    @rule(random=RANDOM)
    def forget(self, random):
        for block in some(random, self.naive.refs, 2):
            self.pool.forget(block)
            self.naive.forget(block)

    @rule(random=RANDOM)
    def churn(self, random):
        for _ in range(20):
            operations = (self.allocate, self.retain, self.release, self.mark_findable, self.forget)
            random.choice(operations)(random)
            self.agree()

    @rule(random=RANDOM)
    def misuse(self, random):
        """Everything that must be refused; the invariant after it sees that nothing changed."""
        free = len(self.naive.order)
        with pytest.raises(RuntimeError, match=f"expected at most {free} blocks"):
            self.pool.allocate(free + random.randint(1, 3))
        with pytest.raises(ValueError, match="count: expected"):
            self.pool.allocate(-random.randint(1, 3))
        some_owned = some(random, self.owned(), 2)
        for block in set(self.naive.order) - self.naive.findable:
            with pytest.raises(ValueError, match="block to retain: expected"):
                self.pool.retain([*some_owned, block])
        for block, count in self.naive.refs.items():
            with pytest.raises(ValueError, match="was it released twice"):
                self.pool.release([*some_owned, *[block] * (count + 1)])
        for block in self.naive.order:
            with pytest.raises(ValueError, match="block to mark findable: expected"):
                self.pool.mark_findable([*some_owned, block])

    @invariant()
    def agree(self):
        self.pool.check_invariants()
        assert self.pool.free_order() == self.naive.order
        assert self.pool.num_free == len(self.naive.order)
        assert self.evicted == self.naive.evicted
        for block, count in self.naive.refs.items():
            assert self.pool.ref_count(block) == count
            assert self.pool.is_findable(block) == (block in self.naive.findable)


def short_digest(num_bytes: int):
    """sha256 cut to a few bytes: with 0 or 1, collisions are the rule."""
    return lambda data: hashlib.sha256(data).digest()[:num_bytes]


class PrefixMachine(RuleBasedStateMachine):
    """PrefixCache, its digest cut short, against a dictionary keyed by all tokens."""

    cache_class = PrefixCache

    @initialize(block_size=st.integers(1, 3), num_bytes=st.sampled_from([0, 1, 32]))
    def start(self, block_size, num_bytes):
        self.size = block_size
        self.cache = self.cache_class(block_size, digest=short_digest(num_bytes))
        self.naive = NaivePrefixes(block_size)
        # What callers hold, however stale: the prefix and its naive handle.
        self.handles: list[tuple[Prefix | None, Handle | None]] = [(None, None)]
        self.next_block = 1

    def insert(self, prefix, handle, tokens, namespace):
        blocks = range(self.next_block, self.next_block + len(tokens) // self.size)
        prefix = self.cache.insert(prefix, tokens, blocks, namespace)
        for index, block in enumerate(blocks):
            block_tokens = tokens[index * self.size : (index + 1) * self.size]
            handle = self.naive.insert(handle, block_tokens, block, namespace)
        assert prefix.attached == self.naive.is_attached(handle)
        self.next_block = blocks.stop
        self.handles = [*self.handles[-20:], (prefix, handle), (None, None)]
        return prefix, handle

    @rule(random=RANDOM)
    def insert_after_anything(self, random):
        tokens = random.choices((0, 1), k=self.size * random.randint(1, 2))
        prefix, handle = random.choice(self.handles)
        self.insert(prefix, handle, tokens, random.choice(NAMESPACES))

    @rule(random=RANDOM)
    def forget(self, random):
        for block in some(random, self.naive.blocks(), 3):
            self.cache.forget(block)
            self.naive.forget(block)
        self.cache.forget(self.next_block)  # never indexed: nothing happens

    @rule(random=RANDOM)
    def compute_again(self, random):
        """A known prefix is computed once more, beside its blocks or after they were evicted."""
        if not self.naive.nodes:
            return
        namespace, tokens = random.choice(sorted(self.naive.nodes))
        self.look_up(tokens, namespace)
        if random.random() < 0.5:
            for block in sorted(self.naive.nodes[namespace, tokens].blocks):
                self.cache.forget(block)
                self.naive.forget(block)
        if tokens:
            self.insert(None, None, list(tokens), namespace)
        self.look_up(tokens, namespace)

    @rule(random=RANDOM)
    def match(self, random):
        """Something known and a little more, once or twice, under its namespace or another."""
        known = [*sorted(self.naive.nodes), ("", ())]
        namespace, tokens = random.choice(known)
        tokens = [*tokens, *random.choices((0, 1), k=random.randint(0, 2 * self.size))]
        if random.random() < 0.3:
            namespace = random.choice(NAMESPACES)
        self.look_up(tokens, namespace)

    def look_up(self, tokens, namespace):
        found = self.cache.match(tokens, namespace)
        assert [p.block_ids for p in found] == self.naive.match(tokens, namespace)
        if found:
            key = namespace, tuple(tokens[: len(found) * self.size])
            self.handles.append((found[-1], self.naive.handle(key)))

    @rule(random=RANDOM)
    def churn(self, random):
        for _ in range(15):
            operations = (self.insert_after_anything, self.forget, self.compute_again, self.match)
            random.choice(operations)(random)

    @rule(random=RANDOM)
    def misuse(self, random):
        for block in some(random, self.naive.blocks(), 2):
            with pytest.raises(ValueError, match="not indexed yet"):
                self.cache.insert(None, [0] * 2 * self.size, [self.next_block, block])
        with pytest.raises(ValueError, match="full blocks"):
            self.cache.insert(None, [0] * (2 * self.size + 1), [self.next_block])
        with pytest.raises(ValueError, match="each block once"):
            self.cache.insert(None, [0] * 2 * self.size, [self.next_block] * 2)

    @invariant()
    def agree(self):
        self.cache.check_invariants()
        blocks = self.naive.blocks()
        assert len(self.cache) == len(blocks)
        assert all(block in self.cache for block in blocks)


class ManagerMachine(RuleBasedStateMachine):
    """BlockManager in an engine's hands, with the contents of every slot simulated.

    A slot holds what a model would write there: a value that depends on the namespace and on all
    tokens up to its position. So a sibling that sees a foreign write, a hit on the wrong block, a
    forgotten copy, or a hash that outlives its contents all show as a wrong value. In lockstep, a
    `NaiveManager` must give the same answers and the very same blocks.
    """

    manager_class = BlockManager

    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.sampled_from([4, 3, 2, 1]),
        num_bytes=st.sampled_from([0, 1, 32]),
    )
    def start(self, num_blocks, block_size, num_bytes):
        self.size = block_size
        digest = short_digest(num_bytes)
        self.manager = self.manager_class(num_blocks, block_size, digest=digest)
        self.naive = NaiveManager(num_blocks, block_size)
        self.memory = {}
        self.tokens = {}  # of each live sequence
        self.computed = {}  # leading tokens whose contents are in memory
        self.seen = [[]]  # prompts, also of sequences long gone
        self.next_number = 0

    def new_number(self):
        self.next_number += 1
        return self.next_number

    # --- what the engine does -------------------------------------------------------------------

    def admit(self, random):
        """A new sequence; its prompt mostly begins like one seen before."""
        head = random.choice([*self.seen[-6:], *self.tokens.values()])
        head = head[: random.randint(0, 2 * len(head))]
        tokens = head + random.choices((0, 1), k=random.randint(1, 2 * self.size))
        namespace = random.choice(("", "", "", *NAMESPACES))
        num_tokens = random.choice((len(tokens), random.randint(0, len(tokens))))
        number = self.new_number()
        hits, before = self.naive.match(tokens, namespace), self.manager.num_hit_tokens
        assert self.manager.match_prefix(tokens, namespace) == len(hits) * self.size < len(tokens)
        cached = self.manager.allocate(number, tokens, num_tokens, namespace)
        assert cached == self.naive.allocate(number, tokens, num_tokens, namespace)
        assert self.manager.num_hit_tokens - before == (cached or 0)
        if cached is None:
            return None
        self.tokens[number], self.computed[number] = tokens, cached
        self.seen.append(tokens)
        stop = max(num_tokens, cached)
        self.commit(number, stop)
        return number, stop

    def extend(self, random, number):
        """Some more positions, through `append` or inside a block that is the sequence's own."""
        start = self.computed[number]
        stop = start + random.randint(1, 2 * self.size)
        missing = max(0, stop - len(self.tokens[number]))
        self.tokens[number] = self.tokens[number] + random.choices((0, 1), k=missing)
        table = self.naive.tables[number]
        inside = start % self.size > 0 and stop <= len(table.blocks) * self.size
        own = inside and self.naive.pool.refs[table.blocks[-1]] == 1
        if own and random.random() < 0.5:
            table.num_tokens = max(table.num_tokens, stop // self.size * self.size)
        else:
            done = self.manager.append(number, stop)
            assert done == self.naive.append(number, stop)
            if not done:
                return None
        self.commit(number, stop)
        return number, stop

    def commit(self, number, stop):
        self.manager.commit(number, self.tokens[number], stop)
        self.naive.commit(number, self.tokens[number], stop)

    def drop(self, number, num_valid=None):
        self.manager.free(number, num_valid)
        self.naive.free(number, num_valid)
        del self.tokens[number], self.computed[number]

    def value(self, number, position):
        namespace = self.naive.tables[number].namespace
        return namespace, tuple(self.tokens[number][: position + 1])

    def run_copies(self):
        for source, target in self.manager.take_copies():
            for offset in range(self.size):
                value = self.memory.get(source * self.size + offset)
                self.memory[target * self.size + offset] = value

    # --- what happens ---------------------------------------------------------------------------

    @rule(random=RANDOM)
    def step(self, random):
        """Some sequences grow, some are preempted, new ones join; then all writes, or a failure.

        Full blocks are committed before they are written, so the new ones may hit them.
        """
        scheduled = {}
        for number in some(random, self.tokens, 4):
            entry = self.extend(random, number)
            if entry is None or random.random() < 0.1:
                self.drop(number, self.computed[number])  # preempted
            else:
                scheduled[number] = entry[1]
        for _ in range(random.randint(0, 2)):
            entry = self.admit(random)
            if entry is not None:
                scheduled[entry[0]] = entry[1]
        self.run_copies()
        fails = random.random() < 0.15
        for number, stop in scheduled.items():
            start = self.computed[number]
            for position, slot in enumerate(self.manager.table(number).slots(start, stop), start):
                self.memory[slot] = "half written" if fails else self.value(number, position)
        for number, stop in scheduled.items():
            if fails:
                self.drop(number, self.computed[number])
            else:
                self.computed[number] = stop

    @rule(random=RANDOM)
    def fork(self, random):
        for parent in some(random, self.tokens, 1):
            for _ in range(random.randint(1, 3)):
                child = self.new_number()
                self.manager.fork(parent, child)
                self.naive.fork(parent, child)
                self.tokens[child] = self.tokens[parent][: self.computed[parent]]
                self.computed[child] = self.computed[parent]

    @rule(random=RANDOM)
    def free(self, random):
        for number in some(random, self.tokens, 2):
            valid = random.randint(0, self.computed[number] + 1)
            self.drop(number, random.choice((None, None, valid)))

    @rule()
    def free_all(self):
        for number in sorted(self.tokens):
            self.drop(number)
        assert self.manager.num_free_blocks == self.manager.num_usable_blocks

    @rule()
    def reset(self):
        done = self.manager.reset_prefix_cache()
        assert done == (not self.tokens)
        if done:
            for block in list(self.naive.pool.order):
                self.naive.prefixes.forget(block)
                self.naive.pool.forget(block)

    @rule(random=RANDOM)
    def churn(self, random):
        for _ in range(10):
            random.choice((self.step, self.step, self.fork, self.free))(random)
            self.invariants_hold()
            self.every_sequence_reads_what_it_wrote()

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def invariants_hold(self):
        self.manager.check_invariants()

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        for number, computed in self.computed.items():
            slots = self.manager.table(number).slots(0, computed)
            for position, slot in enumerate(slots):
                assert self.memory.get(slot) == self.value(number, position), (
                    f"sequence {number} reads {self.memory.get(slot)} at position {position}"
                )

    @invariant()
    def same_blocks_as_the_naive_one(self):
        for number, table in self.naive.tables.items():
            assert self.manager.table(number).block_ids == table.blocks
        assert self.manager.num_free_blocks == len(self.naive.pool.order)

    @invariant()
    def usage_adds_up(self):
        usage, pool = self.manager.usage(), self.naive.pool
        assert usage.num_cached_blocks == len(set(pool.order) & pool.findable)
        assert usage.num_used_blocks == sum(count > 0 for count in pool.refs.values())
        unused = (usage.num_free_blocks + usage.num_cached_blocks) * self.size
        used = usage.num_stored_tokens + usage.num_internal_slots
        assert usage.num_slots == used + unused
        tables = self.naive.tables.values()
        stored = {
            (block, offset)
            for table in tables
            for index, block in enumerate(table.blocks)
            for offset in range(min(self.size, table.num_tokens - index * self.size))
        }
        assert usage.num_stored_tokens == len(stored)
        assert usage.num_logical_tokens == sum(table.num_tokens for table in tables)
