"""One prompt to complete, as it goes from the server or the offline front to the engine."""

import dataclasses

from recipes.serve.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One prompt to complete.

    request_id: our own, unique; never a client's. prompt_tokens: ids below the logits' width.
    params: how to sample. priority: smaller first. namespace: whom cached blocks are shared with.
    """

    request_id: str
    prompt_tokens: list[int]
    params: SamplingParams
    priority: int = 0
    namespace: str = ""
