"""Token counts of one answer: prompts once, completions of all samples together."""

from typing import Any

from recipes.serve.outputs import Delta


class Usage:
    """Adds up deltas.

    num_prompt: prompt tokens of all prompts [tokens].
    """

    def __init__(self, num_prompt: int) -> None:
        self._num_prompt = num_prompt
        self._num_completion = 0
        self._cached: dict[str, int] = {}

    def add(self, delta: Delta) -> None:
        self._num_completion += len(delta.token_ids)
        seen = self._cached.get(delta.request_id, 0)
        self._cached[delta.request_id] = max(seen, delta.num_cached_tokens)

    def payload(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": self._num_completion,
            "total_tokens": self._num_prompt + self._num_completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
