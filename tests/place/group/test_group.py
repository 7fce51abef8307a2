"""A group answers as its models' engines would in this process, whatever else it does."""

import pytest

from tests.place.group.groups import ask, on_loop, running_group, save_models
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


@on_loop
async def test_answers_are_those_of_the_engine_in_this_process(folders):
    expected = [run(tiny_engine(tiny_decoder(seed=seed)), *varied("r")) for seed in (0, 1)]
    assert expected[0] != expected[1]
    async with running_group(*folders) as handle:
        for folder, wanted in zip(folders, expected, strict=True):
            assert await ask(handle, folder.name, *varied("r")) == wanted
