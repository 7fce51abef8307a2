"""``einsum_rule``: any product of tensors summed over some of its indices."""

from collections.abc import Mapping, Sequence

from blocks._checks import check, fail
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, rule_of, spread


def einsum_rule(
    equation: str,
    shapes: Sequence[Shape],
    *,
    names: Mapping[str, str] | None = None,
    whole: str = "",
    linear: Sequence[Sequence[int]] | None = None,
    flops_per_point: int | None = None,
) -> OpRule:
    """The rule of ``torch.einsum(equation, ...)``; indices that the output lacks are summed.

    Args:
        equation: with an arrow, every letter once in a tensor.
        shapes: of the operands; a dim of size 1 is broadcast.
        names: what a letter is called; else its factor bears the letter.
        whole: letters that must not be cut.
        linear: None for a product: each operand alone.
        flops_per_point: None for a multiplication and an addition for every operand but one, or
            for nothing where nothing is summed, whose time is that of the memory.

    >>> einsum_rule("ij,jk->ik", [(4, 6), (6, 8)], names={"j": "contraction"})
    OpRule(factors=(Factor(i=4 parallel), Factor(k=8 parallel), Factor(contraction=6 sum)), ...

    Raises:
        ValueError: an equation that does not fit the shapes.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    check(bool(arrow), "equation", "with an arrow", repr(equation))
    check(len(operands) == len(shapes), "operands", len(operands), len(shapes))
    sizes: dict[str, int] = {}
    for letters, shape in zip(operands, shapes, strict=True):
        once = len(letters) == len(shape) == len(set(letters))
        check(once, "operand", f"{len(shape)} different letters", letters)
        for letter, size in zip(letters, shape, strict=True):
            if 1 not in (size, sizes.setdefault(letter, size)) and size != sizes[letter]:
                raise fail(f"size of {letter}", sizes[letter], size)
            sizes[letter] = size if sizes[letter] == 1 else sizes[letter]
    check(set(result) <= set(sizes), "output", f"letters of {sorted(sizes)}", result)

    called = {letter: (names or {}).get(letter, letter) for letter in sizes}
    order = [*result, *(letter for letter in sizes if letter not in result)]
    named = {called[letter]: sizes[letter] for letter in order}
    work = 2 * (len(operands) - 1) if set(result) < set(sizes) else 0
    return rule_of(
        named,
        [spread([called[i] for i in o], s, named) for o, s in zip(operands, shapes, strict=True)],
        [" ".join(called[letter] for letter in result)],
        linear=[(at,) for at in range(len(operands))] if linear is None else linear,
        flops_per_point=work if flops_per_point is None else flops_per_point,
        whole=" ".join(called[letter] for letter in whole),
    )
