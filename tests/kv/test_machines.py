"""Random histories of the pool, the prefix cache and the manager against their naive versions."""

import hypothesis

from tests.kv.machines import ManagerMachine, PoolMachine, PrefixMachine

TestPool = PoolMachine.TestCase
TestPool.settings = hypothesis.settings(stateful_step_count=30)

TestPrefixCache = PrefixMachine.TestCase
TestPrefixCache.settings = hypothesis.settings(stateful_step_count=30)

TestManager = ManagerMachine.TestCase
TestManager.settings = hypothesis.settings(stateful_step_count=30)
