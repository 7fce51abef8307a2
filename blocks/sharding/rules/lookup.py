"""Rows looked up by index, and what is added back to them.

Where the rows are cut, a rank looks up those of the indices that fall into its run, counted from
where the run begins, and gives zeros for the others: addends of the result. Adding back, it leaves
out the others. Where indices are cut, the ranks' additions are addends.
"""

from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_from_front, dim_names, leading_names, rule_of


def embedding_rule(weight: Shape, index: Shape) -> OpRule:
    """(weight [vocab, column], index) to [*index, column].

    >>> embedding_rule((100, 16), (2, 8)).factors[2:]
    (Factor(vocab=100 sum), Factor(column=16 parallel))
    """
    check(len(weight) == 2, "weight", "two dims", weight)
    rows, sizes = _rows(index)
    sizes |= {"vocab": weight[0], "column": weight[1]}
    return rule_of(sizes, ["vocab column", rows], [f"{rows} column"], linear=[(0,)])


def embedding_backward_rule(grad: Shape, num_rows: int) -> OpRule:
    """(grad [*index, column], index) to the gradient of the weight [vocab, column]."""
    rows, sizes = _rows(grad[:-1])
    sizes |= {"vocab": num_rows, "column": grad[-1]}
    return rule_of(sizes, [f"{rows} column", rows], ["vocab column"], linear=[(0,)])


def index_rule(x: Shape, index: Shape, dim: int) -> OpRule:
    """(x, index): entries of one dim of x, whose place the dims of the index take."""
    before, after, sizes = _around(x, dim)
    rows, picked = _rows(index)
    sizes = {**sizes, **picked, "entry": x[dim_from_front(dim, len(x))]}
    output = f"{before} {rows} {after}"
    return rule_of(sizes, [f"{before} entry {after}", rows], [output], linear=[(0,)])


def index_add_rule(x: Shape, index: Shape, dim: int, *, onto_zeros: bool) -> OpRule:
    """(x, index, values): values [..., *index, ...] added to entries of one dim of x.

    Args:
        onto_zeros: whether x is zeros, as in the backward of ``index_rule``; else ranks that cut
            the indices would each add x.
    """
    before, after, sizes = _around(x, dim)
    rows, picked = _rows(index)
    sizes = {**sizes, **picked, "entry": x[dim_from_front(dim, len(x))]}
    return rule_of(
        sizes,
        [f"{before} entry {after}", rows, f"{before} {rows} {after}"],
        [f"{before} entry {after}"],
        linear=[(0, 2), (2,)] if onto_zeros else [(0, 2)],
        whole="" if onto_zeros else rows,
    )


def index_many_rule(x: Shape, indices: Sequence[Shape | None], output: Shape) -> OpRule:
    """(x, *indices): several dims of x looked up together; the others can be cut.

    Args:
        indices: for every dim of x from the first on the shape of its index, None for none.
        output: the index's dims are where the first looked-up dim was, or in front if dims that
            are not looked up lie between.
    """
    at = [dim for dim, index in enumerate(indices) if index is not None]
    together = at == list(range(at[0], at[0] + len(at)))
    count = len(output) - (len(x) - len(at))  # dims of the broadcast index
    names = dim_names(len(x))
    kept = [name for dim, name in enumerate(names) if dim not in at]
    front = at[0] if together else 0
    result = [*kept[:front], *["_"] * count, *kept[front:]]
    sizes = {name: size for name, size in zip(names, x, strict=True) if name in kept}
    along = " ".join(name if name in kept else "_" for name in names)
    shapes = [index for index in indices if index is not None]
    return rule_of(
        sizes,
        [along, *(" ".join("_" * len(index)) for index in shapes)],
        [" ".join(result)],
        linear=[(0,)],
    )


def gather_rule(x: Shape, index: Shape, dim: int) -> OpRule:
    """(x, index): along a dim the entries that the index names, place by place."""
    names, pick, sizes = _gathered(x, index, dim)
    return rule_of(sizes, [names, pick], [pick], linear=[(0,)])


def gather_backward_rule(x: Shape, index: Shape, dim: int) -> OpRule:
    """(grad, index) to the gradient of x: additions to zeros."""
    names, pick, sizes = _gathered(x, index, dim)
    return rule_of(sizes, [pick, pick], [names], linear=[(0,)])


def scatter_rule(x: Shape, index: Shape, dim: int, *, onto_zeros: bool = False) -> OpRule:
    """(x, index, values): values put at, or added to, the entries that the index names.

    Args:
        onto_zeros: whether it adds to zeros; else the ranks have the indices whole.
    """
    names, pick, sizes = _gathered(x, index, dim)
    return rule_of(
        sizes,
        [names, pick, pick],
        [names],
        linear=[(0, 2), (2,)] if onto_zeros else [(0, 2)],
        whole="" if onto_zeros else "pick",
    )


def one_hot_rule(index: Shape, num_classes: int) -> OpRule:
    """index to [*index, class]. Ranks compare with the classes of their run."""
    rows, sizes = _rows(index)
    return rule_of({**sizes, "class": num_classes}, [rows], [f"{rows} class"])


def _rows(index: Shape) -> tuple[str, dict[str, int]]:
    names = leading_names(len(index))
    return " ".join(names), dict(zip(names, index, strict=True))


def _around(x: Shape, dim: int) -> tuple[str, str, dict[str, int]]:
    """Names before and after a dim, and their sizes."""
    at = dim_from_front(dim, len(x))
    names = [f"x_{name}" for name in dim_names(len(x))]
    sizes = {name: size for name, size in zip(names, x, strict=True) if name != names[at]}
    return " ".join(names[:at]), " ".join(names[at + 1 :]), sizes


def _gathered(x: Shape, index: Shape, dim: int) -> tuple[str, str, dict[str, int]]:
    """Names along x, along the index, and sizes; dims of which the index takes a part are whole."""
    check(len(x) == len(index), "index", f"{len(x)} dims", index)
    at = dim_from_front(dim, len(x))
    names = dim_names(len(x))
    sizes = {
        name: size
        for d, (name, size) in enumerate(zip(names, x, strict=True))
        if d != at and size == index[d]
    }
    along = [name if name in sizes else "_" for name in names]
    entries, picks = (
        [*along[:at], "entry", *along[at + 1 :]],
        [*along[:at], "pick", *along[at + 1 :]],
    )
    return " ".join(entries), " ".join(picks), {**sizes, "entry": x[at], "pick": index[at]}
