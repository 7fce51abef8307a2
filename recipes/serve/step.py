"""One batch on its way through the model: what it asks for, and what came of it."""

from collections.abc import Mapping
from typing import NamedTuple

from blocks.sched import Batch
from recipes.serve.live import Live
from recipes.serve.model_runner import StepResult
from recipes.serve.outputs import TokenLogprob
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw


class Outcome(NamedTuple):
    """What came of a step.

    tokens: ids drawn, by entry of the batch. logprobs: of those that are reported, by request and
    sample. errors: what went wrong with single requests.
    """

    tokens: list[list[int]]
    logprobs: dict[tuple[str, int], TokenLogprob]
    errors: dict[str, str]


class Step:
    """A batch, and what the model is to draw and to score with it.

    Requests may end while it is under way: what it finds for them then is let fall.

    batch: as scheduled.
    draws: what to draw, entry by entry; nothing for a prompt chunk that is not the last.

    Args:
        live: all requests that have not ended, by id.
    """

    __slots__ = ("_scored", "batch", "draws")

    def __init__(self, batch: Batch, live: Mapping[str, Live]) -> None:
        self.batch = batch
        self.draws = _draws(batch, live)
        self._scored = _scored(batch, live)

    @property
    def prompts(self) -> list[PromptRows]:
        """Rows of prompts to be scored."""
        return [rows for _, _, rows in self._scored]

    def outcome(self, result: StepResult, live: Mapping[str, Live]) -> Outcome:
        """Sort what the model found by entry and request, and fill in the prompt scores.

        Args:
            live: the requests that have not ended by now.
        """
        errors = self._keep_scores(result, live)
        logprobs: dict[tuple[str, int], TokenLogprob] = {}
        flat = iter(result.drawn)
        groups = [[next(flat) for _ in range(entry.num_samples)] for entry in self.batch.entries]
        for entry, group in zip(self.batch.entries, groups, strict=True):
            sequence = entry.sequence
            if sequence.epoch != entry.epoch:
                continue  # it ended or gave way while this was under way
            request_id = sequence.request.request_id
            for offset, one in enumerate(group):
                if one.error is not None:
                    errors[request_id] = one.error
                if one.logprob is not None:
                    logprobs[request_id, sequence.index + offset] = one.logprob
        return Outcome([[one.token for one in group] for group in groups], logprobs, errors)

    def _keep_scores(self, result: StepResult, live: Mapping[str, Live]) -> dict[str, str]:
        """Fill in the prompt scores; returns what went wrong, by request id."""
        errors: dict[str, str] = {}
        for (request, first, _), scores in zip(self._scored, result.scores, strict=True):
            if live.get(request.job.request_id) is not request:
                continue  # it ended while this was under way
            if isinstance(scores, str):
                errors[request.job.request_id] = scores
            elif request.prompt_scores is not None:
                request.prompt_scores[first : first + len(scores)] = scores
        return errors


def _draws(batch: Batch, live: Mapping[str, Live]) -> list[Draw]:
    draws: list[Draw] = []
    row = 0
    for entry in batch.entries:
        if entry.num_samples:
            states = live[entry.sequence.request.request_id].drawing(entry)
            draws += [Draw(row, state) for state in states]
            row += 1
    return draws


def _scored(batch: Batch, live: Mapping[str, Live]) -> list[tuple[Live, int, PromptRows]]:
    """Whose prompt tokens this step scores, the first one's place, and their rows."""
    found = []
    row = 0
    for entry in batch.entries:
        request = live[entry.sequence.request.request_id]
        wanted = request.job.params.prompt_logprobs
        if wanted is not None and entry.sequence.num_output == 0:
            prompt, first = request.job.prompt_tokens, entry.start + 1  # what row 0 predicts
            tokens = prompt[first : first + entry.num_tokens]
            found.append((request, first, PromptRows(row, tokens, wanted)))
        row += entry.num_tokens
    return found
