"""Faults at random: every request answered once, nothing overcommitted, calm within two rounds."""

import pytest

from tests.place.fleet.storm import storm


@pytest.mark.parametrize("seed", range(4))
def test_storms_pass(seed: int) -> None:
    told = storm(seed, 1500)
    assert told.faults > 5
    assert told.answers["served"] > 20


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_a_million_events(seed: int) -> None:
    """A hundred storms of ten thousand."""
    told = storm(seed, 10_000)
    assert told.events >= 10_000
    assert told.faults > 50
