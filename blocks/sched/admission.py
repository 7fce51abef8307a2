"""Which requests are accepted: proof that they can finish, and bounds on what waits."""

from blocks._checks import check_count, fail
from blocks.sched.request import Request


class Unservable(ValueError):
    """A request that could never run here, however long it waited."""


class QueueFull(RuntimeError):
    """The waiting queue is at its bound; try again later."""


def check_servable(
    request: Request, *, max_model_len: int, num_usable_blocks: int, block_size: int
) -> None:
    """Raise `Unservable`, with the numbers, unless one sample of the request fits alone.

    The samples of a request run one after another where they must, so one has to fit and not all of
    them. The keys and values of a sample's last token are never needed.
    """
    num_prompt, max_tokens = len(request.prompt_tokens), request.max_tokens
    name, needs = (
        f"request {request.request_id!r}",
        f"{num_prompt} prompt + {max_tokens} new tokens",
    )
    if num_prompt + max_tokens > max_model_len:
        limit = f"at most {max_model_len} tokens (max_model_len)"
        hint = "shorten the prompt or lower max_tokens"
        raise Unservable(str(fail(name, limit, needs, hint)))
    num_blocks = -(-(num_prompt + max_tokens - 1) // block_size)
    if num_blocks > num_usable_blocks:
        limit = f"at most {num_usable_blocks} cache blocks of {block_size} tokens each"
        hint = "shorten the prompt, lower max_tokens or enlarge the cache"
        raise Unservable(str(fail(name, limit, f"{needs} = {num_blocks} blocks", hint)))


class QueueBound:
    """Most sequences and most tokens that may wait; None is no bound.

    A request larger than ``max_tokens`` is let in when nothing else waits.
    """

    __slots__ = ("max_sequences", "max_tokens")

    def __init__(self, max_sequences: int | None, max_tokens: int | None) -> None:
        for name, limit in (("max_waiting", max_sequences), ("max_waiting_tokens", max_tokens)):
            if limit is not None:
                check_count(name, limit, "None is no bound")
        self.max_sequences = max_sequences
        self.max_tokens = max_tokens

    def check(self, request: Request, num_sequences: int, num_tokens: int) -> None:
        """Raise `QueueFull` if the request may not join what waits already."""
        total = num_tokens + len(request.prompt_tokens)
        too_many = self.max_sequences is not None and num_sequences >= self.max_sequences
        too_long = self.max_tokens is not None and num_sequences > 0 and total > self.max_tokens
        if too_many or too_long:
            raise QueueFull(
                f"waiting queue: expected at most {self.max_sequences} sequences and "
                f"{self.max_tokens} tokens (None: no bound), got {num_sequences} sequences and "
                f"{num_tokens} tokens before request {request.request_id!r}; try again later"
            )
