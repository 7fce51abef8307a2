"""The search by bounds alone, with nothing known before, against every plan."""

import random

import pytest

from blocks.pipeline.inter_op.best_first import best_first
from blocks.pipeline.inter_op.budget import budget
from tests.pipeline.inter_op.stage_tables import best_simulated, draw

INFINITY = float("inf")


@pytest.mark.parametrize("seed", range(32))
def test_finds_the_best_by_itself(seed):
    rng = random.Random(seed)
    drawn = draw(rng, max_layers=5)
    case, most = drawn.case, drawn.case.table.num_layers
    cluster = (case.num_hosts, case.devices_per_host, case.kinds)
    devices = budget(case.table.shapes, *cluster, whole=not drawn.idle)
    best, _ = best_simulated(drawn)
    deep = drawn.priced().flow.follows_depth
    proofs = [
        best_first(drawn.priced(depth), devices, depth or most, below=INFINITY, effort=10**6)
        for depth in (range(1, most + 1) if deep else [None])
    ]
    found = [proof.best for proof in proofs if proof.best is not None]
    assert min((seconds for _, seconds in found), default=INFINITY) == best
    assert min(proof.bound_s for proof in proofs) == best, "nothing is left below it"
    # Stopped early, what it says is left is no more than the truth.
    for proof, depth in zip(proofs, range(1, most + 1) if deep else [None], strict=True):
        for effort in range(1, 12, 2):
            early = best_first(
                drawn.priced(depth), devices, depth or most, below=INFINITY, effort=effort
            )
            assert early.num_expanded <= effort
            assert early.bound_s <= proof.bound_s * (1 + 1e-12)
