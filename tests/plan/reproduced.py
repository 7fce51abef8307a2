"""Whether a traced model computes what the model computes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recipes.plan.trace import TracedModule, interpret

SLOW = ("t5:tiny", "mamba2:tiny", "static-moe:tiny")
CAST = ("llama:tiny", "gpt2:tiny", "mixtral:tiny", "mamba2:tiny")
"""These work in float32 inside, whatever the dtype of their parameters."""


def assert_reproduces(traced: TracedModule, module: nn.Module, loss: Tensor, got, rtol: float):
    """Loss, the gradient of every parameter, and the new value of every changed buffer."""
    total, gradients, buffers = got
    torch.testing.assert_close(total, loss.detach(), rtol=rtol, atol=0.0)
    loss.backward()
    largest = max(p.grad.abs().max().item() for p in module.parameters() if p.grad is not None)
    for name, parameter in module.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            gradients.get(name, torch.zeros_like(parameter)), wanted, rtol=rtol, atol=rtol * largest
        )
    after = dict(module.named_buffers())
    for name, value in buffers.items():
        torch.testing.assert_close(value, after[name], rtol=rtol, atol=rtol)
    assert set(traced.params) == {name for name, _ in module.named_parameters()}


def check_trace(
    name: str, traced: TracedModule, module: nn.Module, inputs: Mapping[str, Tensor]
) -> None:
    """A trace of a family's model in float64, interpreted, against the model."""
    traced.check_invariants()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: one.detach().clone() for name, one in state.items()}
    got = interpret(traced, state, dict(zip(traced.inputs, inputs.values(), strict=True)))
    output = module(**inputs)
    loss = output if isinstance(output, Tensor) else output.loss
    assert_reproduces(traced, module, loss, got, 1e-5 if name in CAST else 1e-9)
