"""Requests that come and go at random, and what every one of them must have got."""

import collections
import random

from recipes.model import Decoder
from recipes.serve import Engine
from recipes.serve.outputs import Completion
from tests.serve.models import EOS
from tests.serve.oracle import greedy
from tests.serve.test_engine import assert_clean, job, random_prompts

LONGEST = 24


def churn(engine: Engine, decoder: Decoder, seed: int, count: int, doomed: int) -> int:
    """Random arrival, shared prefixes, n > 1 and cancellation in the middle of everything.

    Every answer, or what there is of a cancelled one, is compared with the request alone. Returns
    how many were cancelled with something still to come.
    """
    rng = random.Random(seed)
    known = random_prompts(40, random.Random(7), decoder.config.vocab_size)  # answered once each
    jobs = [
        job(f"r{i}", prompt, max_tokens=rng.randint(1, LONGEST), n=rng.choice([1, 1, 1, 2, 3]))
        for i, prompt in enumerate(rng.choices(known, k=count))
    ]
    waiting = collections.deque(jobs)
    answers = {j.request_id: [Completion(i) for i in range(j.params.n)] for j in jobs}
    fated = {f"r{i}" for i in rng.sample(range(count), doomed)}
    alive: list[str] = []
    gone: set[str] = set()
    while waiting or engine.has_work():
        for _ in range(rng.choice([0, 1, 3, 4])):
            if waiting:
                alive.append(waiting[0].request_id)
                engine.add(waiting.popleft())
        if rng.random() < 0.2 and (found := [name for name in alive if name in fated]):
            if engine.cancel(found[0]):
                gone.add(found[0])
            alive.remove(found[0])
        for delta in engine.step():
            assert delta.error is None, delta.error
            assert delta.request_id not in gone, "told of a request that was cancelled"
            answers[delta.request_id][delta.index].add(delta)
    for one in jobs:
        wanted = greedy(decoder, tuple(one.prompt_tokens), LONGEST, EOS)[: one.params.max_tokens]
        for completion in answers[one.request_id]:
            if completion.finish_reason is None:
                assert one.request_id in gone
                assert completion.token_ids == wanted[: len(completion.token_ids)], one
            else:
                assert completion.token_ids == wanted, one
    assert_clean(engine)
    return len(gone)
