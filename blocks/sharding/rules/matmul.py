"""Matrix products: of matrices, of batches of them, and of linear layers over activations.

A linear layer keeps the dims of its activations apart (batch, sequence), so each can be cut.
"""

from typing import Literal

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, leading_names, rule_of, spread

WeightLayout = Literal["out in", "in out"]
"""How the weight of a linear layer lies: as ``nn.Linear`` keeps it, or transposed."""


def matmul_rule(a: Shape, b: Shape) -> OpRule:
    """``a @ b`` of matrices, or of batches whose leading dims are equal or broadcast.

    >>> [factor.name for factor in matmul_rule((2, 8, 6), (2, 6, 4)).factors]
    ['batch', 'row', 'column', 'contraction']
    """
    deep = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2]
    check(deep, "matmul", "shapes [..., row, inner] and [..., inner, column]", (a, b))
    count = max(len(a), len(b)) - 2
    names = leading_names(count) if count > 1 else ["batch"][:count]
    sizes = dict.fromkeys(names, 1)
    for shape in (a[:-2], b[:-2]):
        for name, size in zip(reversed(names), reversed(shape), strict=False):
            sizes[name] = size if sizes[name] == 1 else sizes[name]
    sizes |= {"row": a[-2], "column": b[-1], "contraction": a[-1]}

    def along(shape: Shape, last: str) -> str:
        batch = names[count - (len(shape) - 2) :]
        return f"{spread(batch, shape[:-2], sizes)} {last}"

    return rule_of(
        sizes,
        [along(a, "row contraction"), along(b, "contraction column")],
        [" ".join([*names, "row column"])],
        linear=[(0,), (1,)],
        flops_per_point=2,
    )


def linear_rule(
    x: Shape, weight: Shape, *, layout: WeightLayout = "out in", bias: bool = False
) -> OpRule:
    """``x @ weight.T + bias`` over the last dim of activations of any number of dims.

    Locally, a bias is added by the first of the ranks that cut ``in`` alone.

    Args:
        x: [..., in].
        layout: how the weight lies.
        bias: whether there is one, of [out].

    >>> [factor.name for factor in linear_rule((2, 8, 6), (4, 6)).factors]
    ['batch', 'sequence', 'out', 'in']
    """
    check(len(x) > 0, "x", "at least one dim", x)
    names, sizes = _linear(x[:-1], weight, layout)
    check(x[-1] == sizes["in"], "last dim of x", sizes["in"], x[-1])
    rows = " ".join(names)
    return rule_of(
        sizes,
        [f"{rows} in", layout, *["out"] * bias],
        [f"{rows} out"],
        linear=[(0, 2), (1, 2)] if bias else [(0,), (1,)],
        flops_per_point=2,
    )


def linear_input_gradient_rule(
    grad: Shape, weight: Shape, *, layout: WeightLayout = "out in"
) -> OpRule:
    """``grad @ weight``: from [..., out] back to [..., in]."""
    names, sizes = _linear(grad[:-1], weight, layout)
    check(grad[-1] == sizes["out"], "last dim of grad", sizes["out"], grad[-1])
    rows = " ".join(names)
    return rule_of(
        sizes,
        [f"{rows} out", layout],
        [f"{rows} in"],
        linear=[(0,), (1,)],
        flops_per_point=2,
    )


def linear_weight_gradient_rule(
    grad: Shape, x: Shape, *, layout: WeightLayout = "out in"
) -> OpRule:
    """``grad.T @ x``, summed over all rows: from [..., out] and [..., in] to the weight."""
    check(grad[:-1] == x[:-1], "rows of grad", x[:-1], grad[:-1])
    names, sizes = _linear(x[:-1], (grad[-1], x[-1]), "out in")
    rows = " ".join(names)
    return rule_of(
        sizes,
        [f"{rows} out", f"{rows} in"],
        [layout],
        linear=[(0,), (1,)],
        flops_per_point=2,
    )


def _linear(rows: Shape, weight: Shape, layout: WeightLayout) -> tuple[list[str], dict[str, int]]:
    check(len(weight) == 2, "weight", "two dims", weight)
    names = leading_names(len(rows))
    sizes = dict(zip(names, rows, strict=True))
    channels = dict(zip(layout.split(), weight, strict=True))
    return names, sizes | {"out": channels["out"], "in": channels["in"]}
