"""A group answers as its models' engines would in this process, whatever else it does."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from blocks.sched import QueueFull
from recipes.place.group import NotHosted, read_steps
from recipes.place.group.footprint import weight_bytes
from recipes.serve import Engine
from recipes.serve.admission import ContextTooLong
from recipes.serve.stream import Stream
from tests.place.group.groups import ask, collect, first_delta, running_group, save_models
from tests.place.on_loop import eventually, on_loop
from tests.serve.models import tiny_decoder, tiny_engine
from tests.serve.test_engine import job, run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), 0, 1)


def varied(name: str):
    """Requests of every kind; the answers to all are determined."""
    return [
        job(f"{name}-greedy", [5, 6, 7, 8, 9], max_tokens=12),
        job(f"{name}-seeded", [9, 8, 7], temperature=1.0, top_p=0.9, seed=7, max_tokens=12),
        job(f"{name}-many", [30, 31], temperature=0.8, seed=3, n=2, max_tokens=9),
        job(f"{name}-scores", [40, 41, 42], logprobs=3, prompt_logprobs=2, max_tokens=5),
        job(f"{name}-stop", [5, 6, 7, 8, 9], stop=(" ", "e"), max_tokens=30),
        job(f"{name}-token", [5, 6, 7], stop_token_ids=tuple(range(40, 300, 5)), max_tokens=30),
        job(f"{name}-long", list(range(10, 160)), max_tokens=20, logit_bias={44: 2.0}),
    ]


def live(handle):
    """Sequences of every model that have not ended."""
    return [state.standing.num_live for state in handle.state.models.values()]


def endless(name: str, count: int, first: int = 20, **params):
    asked = {"max_tokens": 60, "ignore_eos": True} | params
    return [job(f"{name}{at}", [first + at, 3, 4], **asked) for at in range(count)]


@on_loop
async def test_answers_are_those_of_the_engine_in_this_process(folders):
    expected = [run(tiny_engine(tiny_decoder(seed=seed)), *varied("r")) for seed in (0, 1)]
    assert expected[0] != expected[1]
    async with running_group(*folders) as handle:
        for folder, wanted in zip(folders, expected, strict=True):
            assert await ask(handle, folder.name, *varied("r")) == wanted
        together = [*expected[0], *expected[1]]
        alone = [ask(handle, f.name, one) for f in folders for one in varied(f.name)]
        for found, wanted in zip(await asyncio.gather(*alone), together, strict=True):
            for got, expected_one in zip(found[0].completions, wanted.completions, strict=True):
                assert (got.text, got.token_ids) == (expected_one.text, expected_one.token_ids)
        assert handle.num_in_flight == 0
        await eventually(
            lambda: all(m.standing.num_live == 0 for m in handle.state.models.values())
        )
        for state in handle.state.models.values():
            assert state.standing.num_free_blocks == state.usable_blocks == 2048 // 4
            assert state.stats.num_failed_steps == 0


@pytest.mark.parametrize(
    ("tp", "pp"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.nightly)], ids=["tp2", "pp2"]
)
@on_loop
async def test_a_group_of_two_ranks_answers_as_one_process(folders, tp, pp):
    wanted = run(tiny_engine(tiny_decoder(seed=0)), *varied("r"))
    async with running_group(folders[0], tp=tp, pp=pp, devices=(0, 1)) as handle:
        for got, expected in zip(await ask(handle, "tiny-0", *varied("r")), wanted, strict=True):
            assert [c.token_ids for c in got.completions] == [
                c.token_ids for c in expected.completions
            ]
        loaded = handle.models["tiny-0"]
        shares = weight_bytes(tiny_decoder(seed=0).config, handle.spec)
        assert loaded.weight_bytes == sum(shares)
        assert handle.state.used_bytes == loaded.device_bytes
        assert all(a < b for a, b in zip(shares, loaded.device_bytes, strict=True))


@on_loop
async def test_batches_of_one_model_overlap_in_stages_and_those_of_two_do_not(folders, tmp_path):
    """Tokens are those of one process; a step is logged from being sent out to its tokens."""
    wanted = [run(tiny_engine(tiny_decoder(seed=seed)), *varied("r")) for seed in (0, 1)]
    log = tmp_path / "steps"
    stages: dict[str, Any] = {"pp": 2, "devices": (0, 1), "step_log": str(log), "turns": "round"}
    async with running_group(*folders, **stages) as handle:
        alone = await ask(handle, "tiny-0", *varied("r"))
        num_alone = len(read_steps(log))
        both = [ask(handle, name, *varied(name)) for name in ("tiny-0", "tiny-1")]
        answers = [alone, *await asyncio.gather(*both)]
        for got, expected in zip(answers, [wanted[0], *wanted], strict=True):
            assert [c.token_ids for one in got for c in one.completions] == [
                c.token_ids for one in expected for c in one.completions
            ]
        await eventually(lambda: handle.state.stepping == "")
        assert (handle.state.under_way, handle.num_in_flight) == ((), 0)
    taken = read_steps(log)
    behind = [
        (one.model, other.model)
        for one, other in itertools.pairwise(taken)
        if other.began_s < one.began_s + one.seconds
    ]
    assert behind
    assert all(one == other for one, other in behind), "engines take turns"
    models = [step.model for step in taken[num_alone:]]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    shorter = min(models.count("tiny-0"), models.count("tiny-1"))
    assert changes > shorter, "one step each, while both have work"


@on_loop
async def test_what_cannot_be_served_is_refused_in_the_engines_words(folders):
    async with running_group(folders[0], max_waiting=2, max_sequences=40) as handle:
        with pytest.raises(ContextTooLong, match="at most 256 tokens") as caught:
            await ask(handle, "tiny-0", job("a", [1] * 300))
        assert (caught.value.limit, caught.value.prompt) == (256, 300)
        with pytest.raises(ValueError, match="prompt: expected token ids from 0 to"):
            await ask(handle, "tiny-0", job("a", [1, 10**6]))
        with pytest.raises(ValueError, match="surrogates not allowed"):
            await ask(handle, "tiny-0", job("a", [1], stop=("\ud800",)))
        with pytest.raises(NotHosted):
            await ask(handle, "tiny-1", job("a", [1]))
        with pytest.raises(QueueFull):  # all or none: the first two would fit
            await ask(handle, "tiny-0", *endless("a", 30))
        with pytest.raises(QueueFull, match="in flight"):
            await asyncio.gather(
                *(ask(handle, "tiny-0", j) for j in endless("a", 2, n=25, max_tokens=3))
            )
        await eventually(lambda: handle.num_in_flight == 0)
        assert (await ask(handle, "tiny-0", job("a", [1, 2])))[0].finished


@on_loop
async def test_a_stream_that_is_given_up_is_work_no_more(folders):
    async with running_group(folders[0]) as handle:
        kept = await handle.submit("tiny-0", endless("kept", 1))
        stream = await handle.submit("tiny-0", endless("gone", 4, n=2))
        await first_delta(stream)
        stream.cancel("client_left")
        stream.cancel("twice")
        assert handle.num_in_flight == 1
        await eventually(lambda: not handle.unseen("tiny-0"))
        waiting = asyncio.create_task(handle.submit("tiny-0", endless("never", 3)))
        await asyncio.sleep(0)
        assert handle.unseen("tiny-0") == (3, 3, 3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: handle.state.models["tiny-0"].standing.num_live <= 1)
        (answer,) = (await collect(kept)).values()
        assert len(answer.token_ids) == 60
        await eventually(lambda: handle.state.models["tiny-0"].standing.num_live == 0)
        state = handle.state.models["tiny-0"]
        assert state.standing.num_free_blocks == state.usable_blocks
        assert handle.unseen("tiny-0") == ()


@pytest.mark.parametrize("turns", ["due", "round"])
@on_loop
async def test_the_model_whose_token_is_due_first_takes_the_next_step(folders, turns, monkeypatch):
    order: list[str] = []
    put = Stream.put
    monkeypatch.setattr(Stream, "put", lambda self, d: (order.append(d.request_id), put(self, d)))
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: (time.sleep(0.005), step(self))[1])
    async with running_group(*folders, turns=turns) as handle:
        patient = await handle.submit("tiny-0", endless("patient", 1, max_tokens=200))
        await first_delta(patient)
        urgent = await handle.submit("tiny-1", endless("u", 1, max_tokens=30), ttft_s=1, tpot_s=0.1)
        await collect(urgent)
        await collect(patient)
        first, last = order.index("u0"), len(order) - order[::-1].index("u0")
        between = order[first:last].count("patient0")
        assert between == 0 if turns == "due" else between >= 15, order
        await eventually(lambda: handle.state.models["tiny-0"].standing.expected_output == 200)
