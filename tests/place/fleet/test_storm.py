"""Faults at random: every request answered once, nothing overcommitted, calm within two rounds."""

import pytest

from tests.place.fleet.storm import storm


@pytest.mark.parametrize("seed", range(4))
def test_storms_pass(seed: int) -> None:
    told = storm(seed, 1500)
    assert told.faults > 5
    assert told.answers["served"] > 20


@pytest.mark.nightly
def test_a_million_events() -> None:
    told = [storm(seed, 10_000) for seed in range(1000, 1100)]
    assert sum(one.events for one in told) >= 1_000_000
    assert sum(one.answers.get("sent again", 0) for one in told) > 100
