"""The state machines must notice bugs: each one planted here has to turn one of them red.

A mutant is the source with one passage replaced. If the source changes so that a passage is gone,
the test says so, and the mutant is to be planted anew.
"""

import contextlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis.stateful import run_state_machine_as_test

from tests.kv.machines import ManagerMachine, PoolMachine, PrefixMachine
from tests.kv.test_copies import EVENTS, check_copies

MODULES = (
    "copies",
    "prefix_cache",
    "block_table",
    "block_pool",
    "usage",
    "findable",
    "block_manager",
)
"""In the order in which they import one another."""

MUTANTS = {
    # name: (module, passage, replacement)
    "a released block is not freed": (
        "block_pool",
        "            ref_counts[block_id] = left\n            if not left:",
        "            ref_counts[block_id] = left\n            if not left and block_id != 2:",
    ),
    "a double free goes through": (
        "block_pool",
        "            if times > owners:",
        "            if False:",
    ),
    "a release counts twice": (
        "block_pool",
        "left = ref_counts[block_id] - 1",
        "left = max(0, ref_counts[block_id] - 2)",
    ),
    "one block too many is handed out": (
        "block_pool",
        "if not 0 <= count <= self.num_free:",
        "if not 0 <= count <= self.num_free + 1:",
    ),
    "a claimed free block stays in the free list": (
        "block_pool",
        "                self._unlink(block_id)\n                self.num_free -= 1",
        "                self.num_free -= 1",
    ),
    "the head of a prefix is freed first": (
        "block_pool",
        "for block_id in reversed(block_ids):",
        "for block_id in block_ids:",
    ),
    "cached blocks are reused before empty ones": (
        "block_pool",
        "self._link_after(self._prev[NULL_BLOCK], block_id)",
        "self._link_after(NULL_BLOCK, block_id)",
    ),
    "a hash outlives its block": (
        "block_pool",
        "                if self._on_evict is not None:",
        "                if self._on_evict is not None and block_id % 3:",
    ),
    "the null block is handed out": (
        "block_pool",
        "        self.num_free = num_blocks - 1",
        "        self.num_free = num_blocks",
    ),
    "tokens are not compared on a hit": (
        "prefix_cache",
        "while node is not None and (node.parent is not parent or node.tokens != data):",
        "while False:",
    ),
    "the parent is not compared on a hit": (
        "prefix_cache",
        "while node is not None and (node.parent is not parent or node.tokens != data):",
        "while node is not None and node.tokens != data:",
    ),
    "a repeated look-up trusts the last one": (
        "prefix_cache",
        "                if not node.attached:\n",
        "                if False:\n",
    ),
    "a repeated look-up ignores the namespace": (
        "prefix_cache",
        "guessing = bool(guesses) and guesses[0].parent is parent",
        "guessing = bool(guesses)",
    ),
    "a repeated look-up compares no tokens": (
        "prefix_cache",
        "if guessing and index < len(guesses) and guesses[index].tokens == block:",
        "if guessing and index < len(guesses):",
    ),
    "a colliding name is lost with its twin": (
        "prefix_cache",
        "            self._index[node.digest] = node.twin\n",
        "            del self._index[node.digest]\n",
    ),
    "contents are cached behind a forgotten prefix": (
        "prefix_cache",
        "        elif not parent.attached:\n            return",
        "        elif False:\n            return",
    ),
    "a prefix leaves while longer ones stay": (
        "prefix_cache",
        "while node is not None and not node.block_ids and not node.num_children:",
        "while node is not None and not node.block_ids:",
    ),
    "a shared block is written without a copy": (
        "block_manager",
        "elif pool.ref_count(block_ids[-1]) > 1:",
        "elif False:",
    ),
    "a shared block is copied by its third owner only": (
        "block_manager",
        "elif pool.ref_count(block_ids[-1]) > 1:",
        "elif pool.ref_count(block_ids[-1]) > 2:",
    ),
    "the copy is forgotten": (
        "block_manager",
        "        self._copies.add(shared, own)\n",
        "",
    ),
    "the copy's source keeps an owner": (
        "block_manager",
        "        self._pool.release([shared])\n",
        "",
    ),
    "the copy is not counted before it is taken": (
        "block_manager",
        "if num_new + 1 > pool.num_free:",
        "if num_new > pool.num_free:",
    ),
    "free hits are counted as free blocks too": (
        "block_manager",
        "if num_new > pool.num_free - num_revived:",
        "if num_new > pool.num_free:",
    ),
    "hits are claimed after new blocks are taken": (
        "block_manager",
        "        pool.retain(block_ids)\n        if num_new > 0:\n"
        "            block_ids += pool.allocate(num_new)\n",
        "        new = pool.allocate(max(0, num_new))\n        pool.retain(block_ids)\n"
        "        block_ids += new\n",
    ),
    "a partly filled block is committed": (
        "block_manager",
        "self._findable.commit(table, tokens, num_tokens // size)",
        "self._findable.commit(table, tokens, -(-num_tokens // size))",
    ),
    "a block is committed under its neighbour's tokens": (
        "findable",
        "full = table.block_ids[first:last]",
        "full = table.block_ids[max(0, first - 1) : max(0, first - 1) + last - first]",
    ),
    "a block too few for the last position": (
        "block_manager",
        "num_new = -(-num_tokens // size) - len(block_ids)",
        "num_new = num_tokens // size - len(block_ids)",
    ),
    "all tokens of a prompt are taken from the cache": (
        "findable",
        "if found and len(found) * self.prefixes.block_size >= len(tokens):",
        "if found and len(found) * self.prefixes.block_size > len(tokens):",
    ),
    "a failed step stays in the cache": (
        "findable",
        "            self._pool.forget(block_id)\n",
        "",
    ),
    "a failed step keeps its first block in the cache": (
        "block_manager",
        "table.block_ids[num_valid_tokens // self.block_size :]",
        "table.block_ids[-(-num_valid_tokens // self.block_size) :]",
    ),
    "a fork shares its table": (
        "block_manager",
        "BlockTable(self.block_size, parent.block_ids.copy(), parent.num_tokens)",
        "BlockTable(self.block_size, parent.block_ids, parent.num_tokens)",
    ),
    "a fork owns nothing": (
        "block_manager",
        "        self._pool.retain(parent.block_ids)\n",
        "",
    ),
    "a freed sequence keeps its table": (
        "block_manager",
        "        del self._tables[sequence_id]\n",
        "",
    ),
    "a namespace is forgotten": (
        "block_manager",
        "        table.namespace = namespace\n",
        "",
    ),
    "a needed copy is dropped": (
        "copies",
        "                dead.discard(source)\n",
        "",
    ),
    "copies run in the wrong order": (
        "copies",
        "return needed[::-1]",
        "return needed",
    ),
    "a copy is handed out twice": (
        "copies",
        "        self._events.clear()\n",
        "",
    ),
}


@contextlib.contextmanager
def planted(module: str, passage: str, replacement: str):
    """The modules of blocks.kv loaded anew, one passage changed; its importers see the change."""
    names = [f"blocks.kv.{name}" for name in MODULES]
    kept = {name: sys.modules[name] for name in names}
    try:
        for short, name in zip(MODULES, names, strict=True):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            with open(spec.origin) as file:
                source = file.read()
            if short == module and passage:
                assert source.count(passage) == 1, f"plant this mutant anew: {passage!r}"
                source = source.replace(passage, replacement)
            sys.modules[name] = fresh = ModuleType(name)
            exec(compile(source, spec.origin, "exec"), fresh.__dict__)
        yield
    finally:
        sys.modules.update(kept)


SETTINGS = hypothesis.settings(
    max_examples=100,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.data_too_large,
    ],
)


def run_checks(module: str, settings: hypothesis.settings) -> None:
    """Run the state machine or property of a module over the classes loaded now."""

    def loaded(name: str) -> Any:
        return getattr(sys.modules[f"blocks.kv.{module}"], name)

    if module == "copies":
        make = loaded("PendingCopies")
        settings(given(EVENTS)(lambda events: check_copies(make(), events)))()
    elif module == "prefix_cache":
        machine = type("Prefixes", (PrefixMachine,), {"cache_class": loaded("PrefixCache")})
        run_state_machine_as_test(machine, settings=settings)
    elif module == "block_pool":
        machine = type("Pool", (PoolMachine,), {"pool_class": loaded("BlockPool")})
        run_state_machine_as_test(machine, settings=settings)
    else:
        manager = sys.modules["blocks.kv.block_manager"].BlockManager
        machine = type("Manager", (ManagerMachine,), {"manager_class": manager})
        run_state_machine_as_test(machine, settings=settings)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_noticed(name):
    module, passage, replacement = MUTANTS[name]
    noticed = False
    with planted(module, passage, replacement):
        try:
            run_checks(module, SETTINGS)
        except (Exception, pytest.fail.Exception):
            noticed = True
    assert noticed, f"no check noticed that {name}"


@pytest.mark.parametrize("module", ["copies", "prefix_cache", "block_pool", "block_manager"])
def test_the_same_checks_pass_without_a_planted_bug(module):
    with planted(module, "", ""):
        run_checks(module, hypothesis.settings(SETTINGS, max_examples=30))
