"""Products: einsum, attention, convolutions, experts."""

from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace import experts as experts  # registers operations
from recipes.plan.trace.convolutions import conv_input_gradient, conv_weight_gradient, convolution
from recipes.plan.trace.editing import argument, aten
from recipes.plan.trace.node_tensors import Make


def _einsum(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    equation: Any = argument(node, 0)
    terms, _, result = equation.partition("->")
    one, two = terms.split(",")
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for letter in dict.fromkeys((*one, *two)):
        here = (letter in one, letter in two, letter in result)
        role = {
            (True, True, True): "batch",
            (True, False, True): "row",
            (False, True, True): "column",
        }.get(here, "contraction")
        number = numbers[role] = numbers.get(role, -1) + 1
        names[letter] = f"{role}{number}" if number else role
    return rules.einsum_rule(equation, inputs, names=names)


def _attention(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    mask = inputs[3] if len(inputs) > 3 else None
    return rules.attention_rule(inputs[0], inputs[1], inputs[2], mask=mask)


def _attention_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    mask = inputs[6] if len(inputs) > 6 else None
    return rules.attention_backward_rule(inputs[1], inputs[2], inputs[3], mask=mask)


def _conv(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.conv_rule(inputs[0], inputs[1], outputs[0], **_conv_options(node))


def _conv_input_gradient(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    grad, weight = inputs
    return rules.conv_input_gradient_rule(outputs[0], weight, grad, **_conv_options(node))


def _conv_weight_gradient(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    grad, x = inputs
    return rules.conv_weight_gradient_rule(x, outputs[0], grad, **_conv_options(node))


def _conv_options(node: fx.Node) -> dict[str, Any]:
    geometry: Any = argument(node, 2)
    return {"groups": geometry.groups, "transposed": geometry.transposed}


def _experts(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    """(x, chosen, weights, numbers, gate_up, down) to the output."""
    return _expert_rule(inputs, ["token _"], flops=6)


def _experts_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    """The same after the gradient of the output, to those of x, weights and both matrices."""
    gradients = ["token _", "token _", "expert _ _", "expert _ _"]
    return _expert_rule(inputs, gradients, flops=16)


def _expert_rule(inputs: Any, outputs: list[str], flops: int) -> OpRule:
    (tokens, choices), (count, channels, inner) = inputs[-4], inputs[-1]
    along = ["token _", "token _", "token _", "expert", "expert _ _", "expert _ _"]
    return rules.rule_of(
        {"token": tokens, "expert": count},
        along if len(inputs) == 6 else ["token _", *along],
        outputs,
        linear=((2,), (5,)) if len(inputs) == 6 else ((0,),),
        flops_per_point=-(-flops * choices * channels * inner // count),
    )


_own = torch.ops.llm_blocks
PRODUCTS: dict[Any, Make] = {
    _own.experts.default: _experts,
    _own.experts_backward.default: _experts_backward,
    aten.einsum.default: _einsum,
    convolution: _conv,
    conv_input_gradient: _conv_input_gradient,
    conv_weight_gradient: _conv_weight_gradient,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
