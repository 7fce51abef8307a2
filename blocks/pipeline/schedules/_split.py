"""``put_off``: one forward, one backward, with weight gradients some sequences behind."""

from collections.abc import Iterator

from blocks.pipeline.action import Kind
from blocks.pipeline.schedules._build import B, F, W


def put_off(num_sequences: int, *, num_ahead: int, lag: int) -> Iterator[tuple[Kind, int, int]]:
    """``num_ahead`` forwards, then in turn a backward, the weight gradient ``lag`` sequences before
    it and a forward, then the weight gradients that are left.

    >>> [kind.value + str(sequence) for kind, _, sequence in put_off(3, num_ahead=2, lag=1)]
    ['F0', 'F1', 'B0', 'F2', 'B1', 'W0', 'B2', 'W1', 'W2']
    """
    ahead = min(num_ahead, num_sequences)
    for sequence in range(ahead):
        yield F, 0, sequence
    for sequence in range(num_sequences):
        yield B, 0, sequence
        if sequence >= lag:
            yield W, 0, sequence - lag
        if ahead + sequence < num_sequences:
            yield F, 0, ahead + sequence
    for sequence in range(max(0, num_sequences - lag), num_sequences):
        yield W, 0, sequence
