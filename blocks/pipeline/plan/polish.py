"""``polish``: an order made better by exchanging neighbours, for steps small enough. No torch."""

from collections.abc import Callable, Iterator, Sequence

from blocks.pipeline.plan.merge import SLACK, Word
from blocks.pipeline.plan.step_graph import RankStream, StepGraph


def polish(
    graph: StepGraph,
    words: Sequence[Word],
    cap: int | float,
    seconds: Callable[[Sequence[Word]], float],
    goes_on: Callable[[float], bool],
) -> list[Word]:
    """Words of no longer makespan, after exchanges of a forward and a backward side by side.

    Exchanges are tried on single ranks, and of the same place on neighbouring ranks together,
    since what one rank does sooner helps where the other does so too. Ends where none helps.

    Args:
        cap: bytes no rank may exceed.
        seconds: of an order; infinite where ranks wait for ever.
        goes_on: whether to look on, given the seconds found.
    """
    best, least = list(words), seconds(words)
    moved = True
    while moved and goes_on(least):
        moved = False
        for trial in _neighbours(graph, best, cap):
            time = seconds(trial)
            if time < least:
                best, least, moved = trial, time, True
                break
            if not goes_on(least):
                break
    return best


def _neighbours(graph: StepGraph, words: list[Word], cap: int | float) -> Iterator[list[Word]]:
    options = [
        dict(_exchanges(stream, word, graph.size, cap))
        for stream, word in zip(map(graph.stream, range(len(words))), words, strict=True)
    ]
    for rank, exchanged in enumerate(options):
        for word in exchanged.values():
            yield [*words[:rank], word, *words[rank + 1 :]]
    for rank in range(len(words) - 1):
        for word in options[rank].values():
            for other in options[rank + 1].values():
                yield [*words[:rank], word, other, *words[rank + 2 :]]


def _exchanges(
    stream: RankStream, word: Word, size: int, cap: int | float
) -> Iterator[tuple[int, Word]]:
    """Words that differ by one exchange and are allowed, by its place."""
    numbers = word.numbers
    for place in range(len(numbers) - 1):
        first, second = numbers[place : place + 2]
        if (first < size) != (second < size):
            found = weigh(
                stream, (*numbers[:place], second, first, *numbers[place + 2 :]), size, cap
            )
            if found is not None:
                yield place, found


def weigh(stream: RankStream, numbers: tuple[int, ...], size: int, cap: int | float) -> Word | None:
    """The word of these actions; None where a backward comes too early or ``cap`` is exceeded."""
    k = j = 0
    live = peak = 0.0
    for number in numbers:
        if number < size:
            live += stream.kept[k]
            peak = max(peak, live)
            k += 1
        else:
            if k < stream.needed[j]:
                return None
            live += stream.opened[j]
            peak = max(peak, live + stream.extra[j])
            live -= stream.freed[j]
            j += 1
    return Word(numbers, peak) if peak <= cap * (1 + SLACK) else None
