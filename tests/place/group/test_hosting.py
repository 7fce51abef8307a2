"""Models come and go while others are served; what does not fit is not loaded."""

import asyncio
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from recipes.place.group import GroupSpec, LoadFailed, NotHosted, Replica
from recipes.place.group.footprint import device_bytes, kv_bytes, weight_bytes
from recipes.place.group.hosted import Hosted
from recipes.place.group.memory import DeviceMemory
from recipes.place.group.messages import Host, Unload
from recipes.place.group.shelf import Shelf
from recipes.serve.memory import make_cache
from recipes.serve.model_runner import RunnerLost
from recipes.serve.outputs import Delta
from recipes.serve.parallel import fork_ranks
from tests.place.group.groups import SMALL, ask, collect, first_delta, running_group, save_models
from tests.place.group.storm import pid_of
from tests.place.group.test_group import endless
from tests.place.on_loop import eventually, on_loop
from tests.serve.models import tiny_decoder, tiny_engine
from tests.serve.staged import staged_engine
from tests.serve.test_engine import job


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), 0, 1)


@given(st.integers(4, 4000), st.sampled_from([1, 4, 16]))
def test_a_replica_takes_what_was_foretold(kv_tokens, block_size):
    kv_tokens = max(kv_tokens, block_size)
    spec = GroupSpec(group="g", block_size=block_size)
    decoder = tiny_decoder()
    foretold = device_bytes(decoder.config, spec, kv_tokens)
    cache = make_cache(decoder, spec.engine_config(kv_bytes(decoder.config, spec, kv_tokens)))
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    assert foretold == (weights + cache.storage.nbytes,)
    assert cache.num_blocks - 1 == kv_tokens // block_size


def test_ranks_share_the_weights_and_hold_no_more_than_all():
    model = tiny_decoder().config
    (whole,) = weight_bytes(model, GroupSpec(group="g"))
    for tp, pp in [(2, 1), (1, 2), (2, 2)]:
        spec = GroupSpec(group="g", tp=tp, pp=pp, devices=tuple(range(tp * pp)))
        shares = weight_bytes(model, spec)
        assert whole <= sum(shares) < 1.3 * whole
        assert max(shares) < whole


sizes = st.integers(0, 60)


def test_a_model_whose_ranks_start_anew_is_given_up_once_they_have():
    shelf = Shelf(GroupSpec(group="g"), fork_ranks, None, lambda event: None, lambda reports: None)
    hosted = shelf.models["m"] = Hosted(Host(1, Replica("m", "nowhere", 16)))
    hosted.engine = tiny_engine()
    shelf.unload(Unload(2, "m", 0.0))
    assert shelf.next_deadline_s() == hosted.drain_until_s
    hosted.engine.add(job("r", [1, 2, 3]))
    hosted.busy = True
    assert shelf.give_up_late() == []
    assert shelf.next_deadline_s() is None, "nobody need look again and again meanwhile"
    hosted.busy = False
    assert [delta.lost for delta in shelf.give_up_late()] == [True]
    assert shelf.next_deadline_s() is None


def test_a_step_counts_from_when_it_was_sent_whatever_was_lost_before():
    now_s = [0.0]
    hosted = Hosted(Host(1, Replica("m", "nowhere", 16)), lambda: now_s[0])
    engine, runner = staged_engine(2)
    hosted.serve(engine)

    def begin(name: str) -> list[Delta]:
        hosted.add([job(name, [7, 8, 9], max_tokens=2, ignore_eos=True)], 1.0, 1.0)
        now_s[0] += 1.0
        return hosted.begin(lambda hosted, batch: None, 2)

    def lost(*_: Any) -> None:
        raise RunnerLost("gone")

    assert begin("a") == []
    submit, runner.submit = runner.submit, lost  # type: ignore[method-assign]
    assert [delta.lost for delta in begin("b")] == [True, True]
    runner.submit = submit  # type: ignore[method-assign]
    now_s[0] += 100.0
    assert begin("c") == []
    now_s[0] += 0.5
    assert [delta.request_id for delta in hosted.finish()] == ["c"]
    assert hosted.state().last_step_s == 0.5


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), sizes, sizes)))
def test_no_device_is_ever_promised_more_than_it_has(asked):
    memory, held, steps = DeviceMemory(2, 100), {}, {}
    for model, take, size, activations in asked:
        if not take:
            memory.give_back(model)
            held.pop(model, None)
            steps.pop(model, None)
        elif model not in held:
            fits = sum(held.values()) + size + max([activations, *steps.values()]) <= 100
            try:
                memory.take(model, (size, size // 2), activations)
                assert fits
                held[model], steps[model] = size, activations
            except LoadFailed:
                assert not fits
        memory.check_invariants()
        assert memory.used()[0] == sum(held.values()) + max(steps.values(), default=0)


@on_loop
async def test_loads_that_fail_are_answered_and_the_group_goes_on(folders, tmp_path, caplog):
    broken = save_models(tmp_path, 3)[0]
    (broken / "model.safetensors").write_bytes(b"no tensors")
    async with running_group(folders[0]) as handle:
        streams = await handle.submit("tiny-0", endless("r", 2))
        for folder, words in [
            (tmp_path / "nothing", "nothing"),
            (broken, "model.safetensors"),
            (folders[0], "already"),
        ]:
            name = "tiny-0" if folder == folders[0] else folder.name
            with pytest.raises(LoadFailed, match=words):
                await handle.load(Replica(name, str(folder), 64))
        with pytest.raises(LoadFailed, match="at least a block of 4 tokens"):
            await handle.load(Replica("small", str(folders[1]), 3))
        assert set(handle.models) == set(handle.state.models) == {"tiny-0"}
        assert handle.state.used_bytes == handle.models["tiny-0"].device_bytes
        assert all(len(a.token_ids) == 60 for a in (await collect(streams)).values())


@on_loop
async def test_memory_is_not_promised_twice(folders):
    model, spec = tiny_decoder().config, GroupSpec(group="g", **SMALL)
    (one,) = device_bytes(model, spec, 512)
    async with running_group(folders[0], kv_tokens=512, memory_bytes=2 * one - 1) as handle:
        for tokens, activation_bytes in ((512, 0), (256, one)):
            with pytest.raises(LoadFailed, match=r"needs .* of device 0 of the group, which has"):
                await handle.load(Replica("tiny-1", str(folders[1]), tokens, activation_bytes))
        both = [handle.load(Replica(name, str(folders[1]), 256)) for name in "ab"]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert sum(isinstance(one, LoadFailed) for one in found) == 1, "there is room for one"
        (there,) = set(handle.models) & {"a", "b"}
        await handle.unload(there)
        await handle.unload("tiny-0")
        await eventually(lambda: handle.state.used_bytes == (0,))
        await handle.load(Replica("tiny-1", str(folders[1]), 512))
        assert handle.state.used_bytes == (one,)
        assert (await ask(handle, "tiny-1", job("r", [5, 6])))[0].finished


@on_loop
async def test_unloading_gives_the_memory_back(folders):
    tokens = 400_000  # of 256 bytes

    def resident_bytes() -> int:
        return int(Path(f"/proc/{pid_of(handle)}/statm").read_text().split()[1]) * 4096

    async with running_group(folders[0], block_size=64) as handle:
        before = resident_bytes()
        loaded = await handle.load(Replica("big", str(folders[1]), tokens))
        assert loaded.device_bytes[0] > 100e6
        assert resident_bytes() - before > 90e6
        await handle.unload("big")
        assert resident_bytes() - before < 30e6


@on_loop
async def test_unloading_answers_what_was_taken(folders):
    async with running_group(*folders) as handle:
        taken = await handle.submit("tiny-0", endless("taken", 3))
        late = await handle.submit("tiny-1", endless("late", 3))
        await first_delta(taken)
        unload = asyncio.create_task(handle.unload("tiny-0"))
        await asyncio.sleep(0)
        with pytest.raises(NotHosted):
            await handle.submit("tiny-0", endless("new", 1))
        answers = await collect(taken)
        assert not unload.done()
        await unload
        assert all(c.finish_reason == "length" for a in answers.values() for c in a.completions)
        assert set(handle.state.models) == {"tiny-1"}
        with pytest.raises(NotHosted):
            await handle.unload("tiny-0")
        await handle.load(Replica("tiny-0", str(folders[0]), 64))
        again = await handle.submit("tiny-1", endless("again", 2))
        await handle.unload("tiny-1", drain_s=0)
        for stream in (late, again):
            for answer in (await collect(stream)).values():
                (completion,) = answer.completions
                assert completion.finish_reason in ("length", "error")
                if completion.finish_reason == "error":
                    assert completion.error == "the model was unloaded"
        assert completion.finish_reason == "error"
        assert (await ask(handle, "tiny-0", job("r", [5, 6])))[0].finished


@on_loop
async def test_others_are_served_while_a_model_loads(folders, monkeypatch, tmp_path):
    make = Shelf._make_engine

    def slow(self, replica):
        while replica.model == "slow" and not (tmp_path / "go").exists():
            time.sleep(0.01)
        return make(self, replica)

    monkeypatch.setattr(Shelf, "_make_engine", slow)
    async with running_group(folders[0]) as handle:
        load = asyncio.create_task(handle.load(Replica("slow", str(folders[1]), 64)))
        await eventually(lambda: "slow" in handle.state.models)
        assert handle.state.models["slow"].status == "loading"
        unload = asyncio.create_task(handle.unload("slow"))  # as soon as it has come
        assert (await ask(handle, "tiny-0", *endless("r", 2)))[1].finished
        assert not load.done()
        (tmp_path / "go").touch()
        await load
        await unload
        assert set(handle.state.models) == {"tiny-0"}
