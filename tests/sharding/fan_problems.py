"""Small seeded problems in the manner of posed graphs: makers, readers, shared copies."""

import numpy as np

from blocks.sharding.intra_op import Hints, Problem, Term
from blocks.sharding.intra_op.hints import Copy


def draw_fans(seed: int, max_choices: int = 5_000) -> tuple[Problem, Hints]:
    """Up to 8 variables of up to 6 labels; values with one to four readers, some twice.

    As on two mesh axes, several labels have the same placement for a value. Costs are whole
    numbers; prices need not be those of a metric, so that the relaxation is loose for some.
    """
    rng = np.random.default_rng(seed)
    num_variables = int(rng.integers(3, 9))
    counts = rng.integers(2, 7, num_variables)
    while np.prod(counts) > max_choices:
        counts[rng.integers(num_variables)] = 2
    high = int(rng.choice([3, 10, 100]))
    seconds = [rng.integers(0, high, n).astype(float) for n in counts]
    terms: list[Term] = []
    copies: list[Copy] = []
    for _ in range(int(rng.integers(1, 2 * num_variables))):
        maker = int(rng.integers(num_variables - 1))
        many = min(int(rng.choice([1, 1, 2, 3, 4])), num_variables - 1 - maker)
        readers = sorted(rng.permutation(np.arange(maker + 1, num_variables))[:many].tolist())
        kinds = int(rng.integers(2, 5))
        prices = rng.integers(0, high, (kinds, kinds)).astype(float)
        np.fill_diagonal(prices, 0)
        makes = rng.integers(0, kinds, counts[maker])
        wants = tuple(
            tuple(rng.integers(0, kinds, counts[v]) for _ in range(1 + (rng.random() < 0.2)))
            for v in readers
        )
        if many == 1:
            terms.append(Term((maker, readers[0]), _alone(prices, makes, wants[0], -1)))
            continue
        by = [set(np.concatenate(own).tolist()) for own in wants]
        often = [q for q in range(kinds) if sum(q in each for each in by) > 1]
        copied = np.array([-1, *often])
        variable = len(seconds)
        seconds.append(np.zeros(len(copied)))
        terms.append(Term((maker, variable), np.where(copied >= 0, prices[makes][:, copied], 0.0)))
        copies.append(
            Copy(variable, copied, len(terms), maker, makes, tuple(readers), wants, prices)
        )
        for reader, own in zip(readers, wants, strict=True):
            through = np.stack([_alone(prices, makes, own, q) for q in copied], axis=1)
            terms.append(Term((maker, variable, reader), through))
    memory = tuple(rng.integers(0, 20, len(s)).astype(float) for s in seconds[:num_variables])
    memory += tuple(np.zeros(len(s)) for s in seconds[num_variables:])
    order = [*range(num_variables), *range(num_variables, len(seconds))]
    return Problem(tuple(seconds[v] for v in order), tuple(terms), memory), Hints(tuple(copies))


def _alone(
    prices: np.ndarray, makes: np.ndarray, wants: tuple[np.ndarray, ...], copied: int
) -> np.ndarray:
    """Seconds by maker and reader, what is copied being there."""
    total = np.zeros((len(makes), len(wants[0])))
    for at, codes in enumerate(wants):
        new = codes != copied
        for other in wants[:at]:
            new &= other != codes
        total += np.where(new, prices[np.ix_(makes, codes)], 0.0)
    return total


def ring(num_variables: int, seed: int) -> Problem:
    """A cycle in which neighbours of equal labels pay: of odd length one pair has to.

    A relaxation to pairs costs nothing, so the bound is loose.
    """
    rng = np.random.default_rng(seed)
    apart = np.eye(2) * 10.0
    pairs = [(v, v + 1) for v in range(num_variables - 1)] + [(0, num_variables - 1)]
    seconds = tuple(rng.integers(0, 3, 2).astype(float) for _ in range(num_variables))
    memory = tuple(rng.integers(0, 20, 2).astype(float) for _ in range(num_variables))
    return Problem(seconds, tuple(Term(pair, apart) for pair in pairs), memory)


def least_of_nodes(problem: Problem, hints: Hints) -> np.ndarray:
    """Seconds of every choice of the variables that are no copies, with the best copies."""
    first = len(problem.seconds) - len(hints.copies)
    counts = problem.num_labels[:first]
    total = np.zeros(counts)
    spread = lambda v: [-1 if u == v else 1 for u in range(first)]  # noqa: E731
    for v in range(first):
        total += problem.seconds[v].reshape(spread(v))
    shared: dict[int, np.ndarray] = {}
    for variables, table in problem.terms:
        nodes = [v for v in variables if v < first]
        copy = [v for v in variables if v >= first]
        order = [variables.index(v) for v in sorted(nodes)] + [variables.index(v) for v in copy]
        shape = [counts[v] if v in nodes else 1 for v in range(first)]
        wide = table.transpose(order).reshape(*shape, -1)
        if copy:
            shared[copy[0]] = shared.get(copy[0], np.zeros(())) + wide
        else:
            total = total + wide[..., 0]
    for table in shared.values():
        total = total + table.min(axis=-1)
    return total
