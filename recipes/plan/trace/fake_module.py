"""A module without its weights: the same Python objects, tensors of shapes and dtypes only."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from blocks._checks import check
from recipes.plan.trace.experts import as_one_operation


def fake_module(
    module: nn.Module | Callable[[], nn.Module], fake_mode: FakeTensorMode
) -> nn.Module:
    """The module with every parameter, buffer and tensor attribute a fake tensor of ``fake_mode``.

    The module given is left alone: its Python objects are copied, its tensors are not. It may
    stand on the meta device or be made of another mode's fake tensors. A callable that is no
    module is taken for a factory and called with the meta device as default.

    Raises:
        TypeError: neither a module nor a callable that makes one.
    """
    if not isinstance(module, nn.Module):
        what = "module: expected a torch.nn.Module or a function that makes one"
        if not callable(module):
            raise TypeError(f"{what}, got {module!r}")
        with torch.device("meta"):
            made = module()
        if not isinstance(made, nn.Module):
            raise TypeError(f"{what}, got one that makes a {type(made).__name__}")
        module = made
    memo: dict[int, Any] = {}
    for owner in module.modules():
        tensors = [*owner._parameters.values(), *owner._buffers.values(), *vars(owner).values()]
        for tensor in tensors:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = fake_tensor(tensor, fake_mode)
    copied = copy.deepcopy(module, memo)
    as_one_operation(copied)
    return copied


def fake_tensor(tensor: Tensor, fake_mode: FakeTensorMode) -> Tensor:
    """A fake CPU tensor of the same shape, strides and dtype; a parameter where it was one."""
    check(tensor.layout == torch.strided, "tensor layout", "torch.strided", tensor.layout)
    with fake_mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)


def fake_inputs(inputs: Any, fake_mode: FakeTensorMode) -> Any:
    """The same nest of arguments with fake tensors for tensors; everything else stays."""
    return pytree.tree_map_only(Tensor, lambda one: fake_tensor(one, fake_mode), inputs)
