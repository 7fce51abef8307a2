"""The paper's capacity arithmetic and the order of its baselines; the buddy allocator they use."""

import statistics

import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blocks.kv import bytes_per_token
from blocks.kv.waste import (
    BuddyAllocator,
    Lengths,
    reserve_max,
    reserve_oracle,
    reserve_pow2,
    sharegpt_like,
    simulate_contiguous,
    simulate_paged,
)

OPT_13B_SLOTS = 12 * 2**30 // bytes_per_token(40, 40, 128, torch.float16)


def test_capacity_arithmetic_of_opt_13b():
    """Kwon et al., 2023, table 1 and figure 13a: 15.7K slots hold 7 reservations of 2048."""
    assert OPT_13B_SLOTS == 15728
    shares = simulate_contiguous(sharegpt_like(300), OPT_13B_SLOTS, reserve_max())
    assert shares.num_running == OPT_13B_SLOTS // 2048 == 7


def test_lengths_have_the_means_of_the_paper():
    lengths = sharegpt_like(40_000, seed=1)
    assert statistics.mean(x.prompt for x in lengths) == pytest.approx(161.31, rel=0.02)
    assert statistics.mean(x.output for x in lengths) == pytest.approx(337.99, rel=0.02)
    assert max(x.prompt + x.output for x in lengths) <= 2048


def test_shares_come_out_as_in_the_paper():
    """Kwon et al., 2023, figure 2: 20.4, 26.8, 38.2 and 96.3 % of the slots hold tokens."""
    requests = sharegpt_like(250)
    by_max = simulate_contiguous(requests, OPT_13B_SLOTS, reserve_max())
    by_pow2 = simulate_contiguous(requests, OPT_13B_SLOTS, reserve_pow2)
    by_oracle = simulate_contiguous(requests, OPT_13B_SLOTS, reserve_oracle)
    paged = simulate_paged(requests, OPT_13B_SLOTS)
    assert by_max.stored < by_pow2.stored < by_oracle.stored < 0.5
    assert by_max.stored == pytest.approx(0.204, abs=0.05)
    assert by_oracle.stored == pytest.approx(0.382, abs=0.05)
    assert by_oracle.internal == 0
    assert 1 - paged.stored < 0.04
    assert paged.num_running > 2 * by_oracle.num_running
    for shares in (by_max, by_pow2, by_oracle, paged):
        total = shares.stored + shares.reserved + shares.internal + shares.external
        assert total == pytest.approx(1)


def test_one_request_by_hand():
    """Prompt 2, output 4, of 16 slots with 8 reserved: stored 2, 3, 4, 5 over its four steps."""
    requests = [Lengths(2, 4)] * 3
    shares = simulate_contiguous(requests, 8, lambda request: 8, warm_up=0)
    assert shares.stored == pytest.approx(3.5 / 8)
    assert shares.reserved == pytest.approx(2.5 / 8)
    assert shares.internal == pytest.approx(2 / 8)
    assert shares.external == 0
    assert shares.num_running == 1


def test_a_request_that_never_fits_is_refused():
    request = [Lengths(100, 1)]
    for simulate in (simulate_paged, lambda r, n: simulate_contiguous(r, n, reserve_oracle)):
        with pytest.raises(ValueError, match="request: expected one that fits into 64 slots"):
            simulate(request, 64)


class BuddyMachine(RuleBasedStateMachine):
    """A request fails only if no aligned free run of its size exists."""

    @initialize(num_slots=st.integers(1, 50))
    def start(self, num_slots):
        self.buddy = BuddyAllocator(num_slots)
        self.taken = {}

    @rule(size=st.integers(1, 20))
    def allocate(self, size):
        rounded = 1 << (size - 1).bit_length()
        used = {slot for start, count in self.taken.items() for slot in range(start, start + count)}
        fits = [
            at
            for at in range(0, self.buddy.num_slots - rounded + 1, rounded)
            if not used & set(range(at, at + rounded))
        ]
        start = self.buddy.allocate(size)
        assert (start is not None) == bool(fits)
        if start is not None:
            assert start in fits
            self.taken[start] = rounded

    @rule(data=st.data())
    def free(self, data):
        start = data.draw(st.sampled_from(sorted(self.taken))) if self.taken else None
        if start is not None:
            self.buddy.free(start)
            del self.taken[start]
            with pytest.raises(ValueError, match="a run that is taken"):
                self.buddy.free(start)

    @invariant()
    def invariants_hold(self):
        self.buddy.check_invariants()


TestBuddy = BuddyMachine.TestCase
