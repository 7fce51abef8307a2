"""Groups that are forks of the test, serving tiny models; and what comes of streams."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from recipes.model import save_model
from recipes.place.group import GroupHandle, GroupSpec, Listener, Replica, fork_group
from recipes.serve.job import Job
from recipes.serve.outputs import Completion, RequestOutput
from recipes.serve.stream import Stream
from tests.place.on_loop import LIMIT_S
from tests.serve.models import tiny_decoder, tiny_tokenizer

SMALL: dict[str, Any] = {"max_num_seqs": 16, "token_budget": 64, "block_size": 4}


def save_models(folder: Path, *seeds: int) -> list[Path]:
    """Folders of tiny models with other weights each."""
    folders = []
    for seed in seeds:
        folders.append(folder / f"tiny-{seed}")
        save_model(tiny_decoder(seed=seed), folders[-1], tiny_tokenizer())
    return folders


@contextlib.asynccontextmanager
async def running_group(
    *folders: Path, kv_tokens: int = 2048, start: Any = fork_group, **settings: Any
) -> AsyncIterator[GroupHandle]:
    """A group that hosts the models of the folders under the folders' names."""
    names = ("silence_s", "start_timeout_s", "max_sequences")
    how = {name: settings.pop(name) for name in names if name in settings}
    listener = await Listener.open()
    try:
        spec = GroupSpec(**({"group": "g"} | SMALL | settings))  # type: ignore
        handle = listener.start(spec, start, **how)
        await handle.ready()
        for folder in folders:
            await handle.load(Replica(folder.name, str(folder), kv_tokens))
        yield handle
    finally:
        await listener.close()


async def collect(stream: Stream) -> dict[str, RequestOutput]:
    """What a stream brings, to its end."""
    answers = {
        job.request_id: RequestOutput(
            job.request_id, job.prompt_tokens, [Completion(i) for i in range(job.params.n)]
        )
        for job in stream.jobs
    }
    async for batch in stream.batches(limit=LIMIT_S, heartbeat=LIMIT_S):
        for delta in batch:
            answers[delta.request_id].add(delta)
    return answers


async def ask(handle: GroupHandle, model: str, *jobs: Job) -> list[RequestOutput]:
    return list((await collect(await handle.submit(model, jobs))).values())


async def first_delta(stream: Stream) -> list[Any]:
    async for batch in stream.batches(limit=LIMIT_S, heartbeat=LIMIT_S):
        return batch
    raise AssertionError("the stream ended")


def texts(outputs: Sequence[RequestOutput]) -> list[str]:
    return [output.text for output in outputs]
