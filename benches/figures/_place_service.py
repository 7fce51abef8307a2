"""Figures of the cluster service: storms of faults over its router and its keeper."""

import asyncio
import collections
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import openai

from benches.figures.row import Measured, Row
from blocks.sched.placement import Group, Placement
from tests.place.fleet.storm import storm
from tests.place.front.real import ONE, TWO, serving, settled
from tests.place.group.groups import save_models
from tests.place.on_loop import eventually
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy

COMMAND = "python -m benches.figures --area place"
EVENTS = 10_000
ASKED = 40
PROMPT, MAX_TOKENS = [5, 6, 7, 8], 40


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
    yield Row(
        f"{ASKED} requests at once to a real service (tiny model, two groups, one of two ranks), "
        "one group killed among them: each answered once; those with text are right",
        "all answered, every text right, the group back",
        COMMAND,
        _killed,
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


def _killed() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_kill_one(Path(folder)))


async def _kill_one(folder: Path) -> Measured:
    placement = Placement(
        (Group((0,), ONE, ("m0",), (2000,)), Group((1, 2), TWO, ("m0",), (2000,)))
    )
    tokens = greedy(tiny_decoder(seed=1), tuple(PROMPT), MAX_TOKENS, EOS)
    expected = tiny_tokenizer().decode(tokens)
    async with (
        serving(save_models(folder, 1), placement) as (lobby, url),
        openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client,
    ):

        async def ask() -> str | None:
            try:
                answer = await client.completions.create(
                    model="m0", prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0
                )
            except openai.APIStatusError:
                return None
            return answer.choices[0].text

        await eventually(lambda: settled(lobby))
        pair = lobby.desk.fleet.groups[1, 2]
        asks = [asyncio.create_task(ask()) for _ in range(ASKED)]
        await eventually(lambda: pair.handle.state.models["m0"].standing.num_decodes > 0)
        killed = time.perf_counter()
        os.kill(pair.handle.process.pid, signal.SIGKILL)
        answers = await asyncio.gather(*asks)
        await eventually(lambda: settled(lobby))
        back_s = time.perf_counter() - killed
        lobby.desk.check_invariants()
        again = lobby.desk.fleet.groups[1, 2] is not pair
    served = [text for text in answers if text is not None]
    right = sum(text == expected for text in served)
    ended = len(answers) - len(served)
    text = f"{right} served, {ended} ended with an error; both groups there after {back_s:.1f} s"
    return Measured(text, len(answers) == ASKED and right == len(served) > 0 and again)
