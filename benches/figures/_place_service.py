"""Figures of the cluster service: storms of faults over its router and its keeper."""

import collections
from collections.abc import Iterator

from benches.figures.row import Measured, Row
from tests.place.fleet.storm import storm

COMMAND = "python -m benches.figures --area place"
EVENTS = 10_000


def rows() -> Iterator[Row]:
    yield Row(
        "simulated storms over the service (workers killed, nodes lost and back, loads failing, "
        "clock jumps, new placements): requests without exactly one answer, devices in two groups, "
        "memory overcommitted; rounds to calm after the last fault",
        "none in 1,000,000 events; at most 2 rounds",
        COMMAND,
        _storms,
        nightly=True,
    )


def _storms() -> Measured:
    told = []
    while sum(one.events for one in told) < 1_000_000:
        told.append(storm(len(told), EVENTS))  # raises on a breach
    events, requests = sum(one.events for one in told), sum(one.requests for one in told)
    answers = sum((collections.Counter(one.answers) for one in told), collections.Counter())
    again = answers.pop("sent again")
    rounds = max(one.rounds_to_calm for one in told)
    assert sum(answers.values()) == requests
    faults = sum(one.faults for one in told)
    text = (
        f"none in {events:,} events, {faults:,} faults, {requests:,} requests ({again:,} sent "
        f"again after a loss); {rounds} rounds"
    )
    return Measured(text, rounds <= 2)
