"""What a training step does to its tensors as wholes: where they enter, add up and leave."""

import dataclasses

from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_names, rule_of


def input_rule(shape: Shape) -> OpRule:
    """A tensor of the batch, or a buffer: it may lie in runs of any dim."""
    return _same(shape, 0, 1)


def parameter_rule(shape: Shape) -> OpRule:
    """A parameter as it lies between steps."""
    return _same(shape, 0, 1)


def accumulate_rule(shape: Shape) -> OpRule:
    """Gradients added up over the microbatches; addends stay addends until the step ends."""
    return _same(shape, 1, 1, linear=True)


def update_rule(shape: Shape, *, whole: bool = False, gathered_itemsize: int = 0) -> OpRule:
    """(parameter, gradient) to the new parameter.

    Args:
        whole: for an optimizer that looks at a parameter as a whole and keeps it so (Adafactor);
            Adam and SGD go element by element.
        gathered_itemsize: for one that keeps parts and gathers the whole, of elements of so many
            bytes, when it looks at it (Muon).
    """
    rule = _same(shape, 2, 1, whole=whole)
    return dataclasses.replace(rule, gathered_itemsize=gathered_itemsize)


def output_rule(shape: Shape) -> OpRule:
    """What the caller gets: never addends."""
    return _same(shape, 1, 0)


def _same(
    shape: Shape, num_inputs: int, num_outputs: int, *, linear: bool = False, whole: bool = False
) -> OpRule:
    names = dim_names(len(shape))
    along = " ".join(names)
    return rule_of(
        dict(zip(names, shape, strict=True)),
        [along] * num_inputs,
        [along] * num_outputs,
        linear=[(0,)] if linear else [],
        whole=along if whole else "",
    )
