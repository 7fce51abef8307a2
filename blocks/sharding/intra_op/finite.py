"""``finite``: a problem without what may not be chosen. Needs numpy."""

import numpy as np
import numpy.typing as npt

from blocks._checks import fail
from blocks.sharding.intra_op.problem import Problem, Table, Term


def finite(problem: Problem) -> tuple[Problem, list[npt.NDArray[np.intp]], float]:
    """Without the labels that may not be chosen; pairs that may not be cost more than all else."""
    allowed = [np.isfinite(seconds) for seconds in problem.seconds]
    for v, flags in enumerate(allowed):
        if not flags.any():
            raise fail(f"labels of variable {v}", "one that may be chosen", "none")
    keep = [np.flatnonzero(flags) for flags in allowed]
    tables = {id(t.seconds): t.seconds for t in problem.terms}.values()
    if all(flags.all() for flags in allowed) and all(np.isfinite(t).all() for t in tables):
        return problem, keep, np.inf
    total = sum(float(np.abs(s[f]).max()) for s, f in zip(problem.seconds, allowed, strict=True))
    largest: dict[int, float] = {}
    for _, table in problem.terms:
        if id(table) not in largest:
            held = table[np.isfinite(table)]
            largest[id(table)] = float(np.abs(held).max()) if held.size else 0.0
        total += largest[id(table)]
    big = 2 * total + 1.0
    made: dict[tuple, Table] = {}
    terms = []
    for variables, table in problem.terms:
        key = (id(table), *(allowed[v].tobytes() for v in variables))
        if key not in made:
            cut = table[np.ix_(*(keep[v] for v in variables))]
            made[key] = np.where(np.isfinite(cut), cut, big)
        terms.append(Term(variables, made[key]))
    singles: dict[tuple[int, bytes], Table] = {}
    seconds = []
    for table, flags in zip(problem.seconds, allowed, strict=True):
        single = singles.setdefault((id(table), flags.tobytes()), table[flags])
        seconds.append(single)
    return Problem(tuple(seconds), tuple(terms)), keep, big
