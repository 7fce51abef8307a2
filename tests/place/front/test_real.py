"""The whole service with real groups, forked, and the official client."""

import asyncio
import os
import signal

import openai
import pytest

from blocks.sched.placement import Group, Placement
from tests.place.front.real import ONE, TWO, serving, settled
from tests.place.group.groups import save_models
from tests.place.on_loop import eventually, on_loop
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy

PROMPT = [5, 6, 7, 8]


def expected(seed: int, max_tokens: int) -> str:
    tokens = greedy(tiny_decoder(seed=seed), tuple(PROMPT), max_tokens, EOS)
    return tiny_tokenizer().decode(tokens)


@on_loop
async def test_two_models_on_three_devices_outlive_a_killed_group(tmp_path):
    folders = save_models(tmp_path, 1, 2)
    placement = Placement(
        (Group((0,), ONE, ("m0", "m1"), (400, 400)), Group((1, 2), TWO, ("m0",), (400,)))
    )
    async with (
        serving(folders, placement) as (lobby, url),
        openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["m0", "m1"]

        async def text(model: str, max_tokens: int = 12, **more) -> str:
            answer = await client.completions.create(
                model=model, prompt=PROMPT, max_tokens=max_tokens, temperature=0, **more
            )
            return answer.choices[0].text

        # before anything is loaded: requests wait
        assert await asyncio.gather(text("m0"), text("m1")) == [expected(1, 12), expected(2, 12)]
        await eventually(lambda: settled(lobby))
        streamed = await client.completions.create(
            model="m1", prompt=PROMPT, max_tokens=12, temperature=0, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in streamed]) == expected(2, 12)
        with pytest.raises(openai.NotFoundError):
            await text("m2")
        with pytest.raises(openai.RateLimitError) as refused:
            await text("m0", extra_headers={"x-slo-ttft-ms": "1"})
        assert refused.value.body["predicted_ttft_s"] > 0.005  # type: ignore[index,call-overload]

        # a group of two ranks dies under load: every request is answered, most of them with text
        pair = lobby.desk.fleet.groups[1, 2]
        asks = [asyncio.create_task(text("m0", 60)) for _ in range(12)]
        await eventually(lambda: any(s.num_live for s in lobby.desk.router.seats()
                                     if s.devices == (1, 2)))  # fmt: skip
        os.kill(pair.handle.process.pid, signal.SIGKILL)
        answers = await asyncio.gather(*asks, return_exceptions=True)
        wrong = [one for one in answers if one != expected(1, 60)]
        assert all(isinstance(one, openai.APIStatusError) for one in wrong), wrong
        assert len(wrong) < len(answers)
        await eventually(lambda: settled(lobby))
        assert lobby.desk.fleet.groups[1, 2] is not pair
        assert await text("m0") == expected(1, 12)
        lobby.desk.check_invariants()

        # the search runs in a process of its own
        found = await lobby.replanner.look()
        assert found is not None
        assert 0 <= found.stay <= found.go <= 1
