"""Small seeded problems, and every choice of labels tried."""

import numpy as np
import pytest

from blocks.sharding.intra_op import OutOfMemory, Problem, Term, minimise, with_memory


def draw(seed: int, max_choices: int = 20_000) -> Problem:
    """Up to 10 variables of up to 6 labels, a term of up to 3 for most pairs of neighbours.

    Costs are whole numbers, so that sums are exact and ties are many.
    """
    rng = np.random.default_rng(seed)
    num_variables = int(rng.integers(1, 11))
    counts = rng.integers(1, 7, num_variables)
    while np.prod(counts) > max_choices:
        counts[rng.integers(num_variables)] = 1 + rng.integers(3)
    high = int(rng.choice([3, 10, 1000]))

    def table(*shape: int) -> np.ndarray:
        found = rng.integers(0, high, shape).astype(float)
        if rng.random() < 0.2 and found.size > 2:
            found[rng.random(shape) < 0.1] = np.inf
        return found

    terms = []
    for _ in range(int(rng.integers(0, 2 * num_variables + 1))):
        size = min(int(rng.choice([2, 2, 2, 3])), num_variables)
        picked = tuple(int(v) for v in rng.permutation(num_variables)[:size])
        terms.append(Term(picked, table(*(counts[v] for v in picked))))
    seconds = tuple(rng.integers(0, high, n).astype(float) for n in counts)
    memory = tuple(rng.integers(0, 20, n).astype(float) for n in counts)
    return Problem(seconds, tuple(terms), memory)


def all_choices(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and bytes of every choice of labels."""
    counts = problem.num_labels
    seconds, held = np.zeros(counts), np.zeros(counts)
    along = lambda v: [-1 if u == v else 1 for u in range(len(counts))]  # noqa: E731
    for v, (s, b) in enumerate(zip(problem.seconds, problem.memory, strict=True)):
        seconds += s.reshape(along(v))
        held += b.reshape(along(v))
    for variables, table in problem.terms:
        order = sorted(range(len(variables)), key=lambda i: variables[i])
        shape = [counts[v] if v in variables else 1 for v in range(len(counts))]
        seconds += table.transpose(order).reshape(shape)
    return seconds.ravel(), held.ravel()


def check_gap(seed: int) -> None:
    """The best choices equal those found by trying all: without a cap, and with three."""
    problem = draw(seed)
    seconds, held = all_choices(problem)
    if np.isinf(seconds).all():
        return
    # Eliminated at once; and for some with labels thinned out first.
    for entries in (2.0**24, 8.0)[: 1 + (seed % 4 == 0)]:
        found = minimise(problem, max_entries=entries)
        assert found.bound <= seconds.min() <= found.seconds == problem.value(found.labels), seed
        if entries > 8:
            assert found.seconds == found.bound == seconds.min(), seed
    allowed = held[np.isfinite(seconds)]
    for share in (0.0, 0.15, 0.5)[: 2 + seed % 2]:
        cap = float(np.floor(allowed.min() + share * (allowed.max() - allowed.min())))
        best = seconds[held <= cap].min()
        got = with_memory(problem, cap)
        assert got.seconds == got.bound == best, (seed, share, got, best)
        assert problem.value(got.labels) == best, seed
        assert problem.bytes(got.labels) <= cap, seed
    with pytest.raises(OutOfMemory) as caught:
        with_memory(problem, allowed.min() - 1)
    assert caught.value.least_bytes == allowed.min(), seed
