"""``whole_parameters``: modules under torch's ``fully_shard`` whole for a step of many slices."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import placement_types as torch_types

from blocks._checks import check
from blocks.sharding.distributed import DistributedGroup
from blocks.sharding.mesh import Mesh
from blocks.sharding.placement import Partial, Replicate, Shard
from blocks.sharding.resharding import reshard
from blocks.sharding.spec import ShardingSpec


@contextlib.contextmanager
def whole_parameters(
    module: nn.Module,
    *,
    reduce: Callable[[Mapping[str, Tensor]], None] | None = None,
    ordered: bool = False,
) -> Iterator[None]:
    """Gather the parameters of a module once, and shard the sum of their gradients once.

    Inside, the parameters are whole plain tensors and stay so over any number of forwards and
    backwards, which may be called in any order and through ``torch.autograd.grad``; what is to
    count is left in their ``.grad``. On the way out the gradients are summed over the ranks (not
    averaged) and every rank's part is added to the ``.grad`` of its sharded parameters. This is how
    a pipeline of token slices wants it: one gather and one reduce-scatter a step, not one a slice.

    Args:
        module: with ``fully_shard`` on it or on parts of it; each of its parameters under one.
        reduce: sums whole gradients, given by name, over the ranks, in place, in an order of its
            own; then each rank takes its part. Twice the bytes of the default, a reduce-scatter.
        ordered: add in rank order, in float32; without ``reduce``.

    Raises:
        ValueError: a parameter that no ``fully_shard`` covers.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    sharded = dict(module.named_parameters())
    for name, parameter in sharded.items():
        covered = isinstance(parameter, DTensor)
        check(covered, f"parameter {name}", "a DTensor", type(parameter).__name__, "fully_shard it")
    for part in parts:
        _hold_still(part)
        part.unshard()
    whole = {name: p for name, p in module.named_parameters() if p.requires_grad}
    torch.autograd.graph.increment_version(list(whole.values()))  # the gather does not
    try:
        yield
        grads = {name: p.grad for name, p in whole.items() if p.grad is not None}
    finally:
        for parameter in whole.values():
            parameter.grad = None
        for part in parts:
            part.reshard()
            _let_go(part)
    with torch.no_grad():
        if reduce is not None:
            wide = {name: grad.to(sharded[name].dtype) for name, grad in grads.items()}
            reduce(wide)
            grads = wide
        for name, grad in grads.items():
            _add_part(sharded[name], grad, summed=reduce is not None, ordered=ordered)


def _hold_still(part: FSDPModule) -> None:
    part.set_requires_gradient_sync(False, recurse=False)
    part.set_reshard_after_forward(False, recurse=False)
    part.set_reshard_after_backward(False, recurse=False)
    part.set_is_last_backward(False)


def _let_go(part: FSDPModule) -> None:
    part.set_requires_gradient_sync(True, recurse=False)
    part.set_reshard_after_backward(True, recurse=False)
    part.set_is_last_backward(True)


def _add_part(parameter: nn.Parameter, grad: Tensor, *, summed: bool, ordered: bool) -> None:
    """Add this rank's part of a gradient to that of a sharded parameter."""
    held: DTensor = parameter  # type: ignore[assignment]
    layout = held.device_mesh
    names = tuple(f"axis{i}" for i in range(layout.ndim))
    mesh = Mesh(names, tuple(layout.shape), tuple(layout.mesh.flatten().tolist()))
    target = ShardingSpec(mesh, tuple(_placement(p) for p in held.placements))
    kind = Replicate() if summed else Partial()
    source = ShardingSpec(mesh, (kind,) * len(names))
    groups = {
        name: DistributedGroup(layout.get_group(i), ordered=ordered) for i, name in enumerate(names)
    }
    rank = torch.distributed.get_rank()
    local = reshard(grad.to(held.dtype), held.shape, source, target, rank, groups)
    part = DTensor.from_local(
        local.contiguous(),
        layout,
        held.placements,
        run_check=False,
        shape=held.shape,
        stride=held.stride(),
    )
    parameter.grad = part if parameter.grad is None else parameter.grad + part


def _placement(placement: torch_types.Placement) -> Shard | Replicate:
    if isinstance(placement, torch_types.Shard):
        return Shard(placement.dim)
    check(placement.is_replicate(), "placement", "Shard or Replicate", placement)
    return Replicate()
