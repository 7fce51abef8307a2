"""``Standing``: what stands in an engine, as whoever sends it requests can know it."""

from collections.abc import Iterable
from typing import NamedTuple

from blocks.sched.request import Sequence, State


class Standing(NamedTuple):
    """An engine's work, as plain data that an engine elsewhere can report.

    num_prompt: prompt tokens to compute after the step under way.
    num_decodes: sequences that decode after it. context_len: their tokens.
    num_live: sequences that are not finished. live_tokens: their tokens.
    waiting_blocks: cache blocks that those who wait for admission need.
    running: of each sequence that holds blocks, tokens of its answer so far and blocks.
    num_free_blocks: cache blocks that nobody holds.
    expected_output: tokens that an answer is taken to have.
    """

    num_prompt: int = 0
    num_decodes: int = 0
    context_len: int = 0
    num_live: int = 0
    live_tokens: int = 0
    waiting_blocks: int = 0
    running: tuple[tuple[int, int], ...] = ()
    num_free_blocks: int = 0
    expected_output: float = 1.0

    def joined(self, prompt_len: int, block_size: int) -> "Standing":
        """With one more request, which waits.

        >>> Standing(num_free_blocks=9).joined(20, 16).waiting_blocks
        2
        """
        return self._replace(
            num_prompt=self.num_prompt + prompt_len,
            num_live=self.num_live + 1,
            live_tokens=self.live_tokens + prompt_len,
            waiting_blocks=self.waiting_blocks - (-prompt_len // block_size),
        )


def standing(
    live: Iterable[Sequence],
    *,
    block_size: int,
    num_free_blocks: int,
    expected_output: float = 1.0,
) -> Standing:
    """What stands in a scheduler, the batches that are out taken for computed.

    Args:
        live: its sequences that are not finished.
        expected_output: mean tokens of the answers so far, as nobody knows the next one's.
    """
    num_prompt = num_decodes = context_len = num_live = live_tokens = waiting_blocks = 0
    running: list[tuple[int, int]] = []
    for sequence in live:
        num_tokens = len(sequence.tokens)
        num_live += 1
        live_tokens += num_tokens
        if sequence.state is State.DECODING:
            num_decodes += 1
            context_len += num_tokens
        elif sequence.num_scheduled < num_tokens:
            num_prompt += num_tokens - sequence.num_scheduled
        else:
            num_decodes += sequence.samples_due
            context_len += sequence.samples_due * num_tokens
        if sequence.state is State.WAITING:
            waiting_blocks -= -num_tokens // block_size
        else:
            running.append((sequence.num_output, sequence.num_slots // block_size))
    return Standing(
        num_prompt,
        num_decodes,
        context_len,
        num_live,
        live_tokens,
        waiting_blocks,
        tuple(running),
        num_free_blocks,
        expected_output,
    )
