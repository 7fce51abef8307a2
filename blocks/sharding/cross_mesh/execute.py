"""``execute_cross_mesh``: one rank's share of a cross-mesh plan, on tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from blocks._checks import check, fail
from blocks.sharding.cross_mesh.box import Box, is_zero, offset_in, overlap
from blocks.sharding.cross_mesh.plan import CrossMeshPlan
from blocks.sharding.cross_mesh.wire import Message, Wire
from blocks.sharding.group import Group
from blocks.sharding.resharding import reshard


def execute_cross_mesh(
    part: Tensor | None,
    plan: CrossMeshPlan,
    rank: int,
    wire: Wire,
    *,
    dtype: torch.dtype,
    groups: Mapping[str, Group] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """What a rank holds under the target, from what it holds under the source.

    Every rank of both meshes calls it; ranks of neither may. Not differentiable: gradients have a
    plan of their own, back.

    Args:
        part: this rank's part of the source; None for ranks outside of the source's mesh.
        rank: of the caller, as the meshes count.
        wire: carries the messages.
        dtype: of the tensor.
        groups: for every axis of the source's mesh the group the rank is in; asked for only where
            the source leaves sums.
        device: that the result is on, and messages arrive on.

    Returns:
        The part under the target, a tensor of its own; None outside of the target's mesh.

    Raises:
        ValueError: a part of another shape or dtype than the plan gives the rank.
    """
    held = _reduced(part, plan, rank, dtype, groups)
    runs = plan.target.runs(plan.shape, rank) if rank in plan.target.mesh.ranks else None
    found = None
    if runs is not None:
        shape = [run.size for run in runs]
        make = torch.zeros if is_zero(plan.target, rank) else torch.empty
        found = make(shape, dtype=dtype, device=device)
    own = [t for t in plan.transfers if rank in (t.source, t.target)]
    coming = [
        (t.box, wire.receive([run.size for run in t.box], dtype, t.source))
        for t in own
        if t.source != rank
    ]
    sent: list[Message] = []
    source_runs = None if held is None else plan.reduced.runs(plan.shape, rank)
    for transfer in own:
        if transfer.source != rank:
            continue
        if transfer.relayed:
            assert found is not None
            assert runs is not None
            _take(coming, found, runs, transfer.box)
            piece = _slice(found, transfer.box, runs)
        else:
            assert held is not None
            assert source_runs is not None
            piece = _slice(held, transfer.box, source_runs)
        if transfer.target == rank:
            assert found is not None
            assert runs is not None
            _slice(found, transfer.box, runs).copy_(piece)
        else:
            sent.append(wire.send(piece.contiguous(), transfer.target))
    if found is not None and runs is not None:
        _take(coming, found, runs, None)
    for message in sent:
        message.wait()
    return found


def _reduced(
    part: Tensor | None,
    plan: CrossMeshPlan,
    rank: int,
    dtype: torch.dtype,
    groups: Mapping[str, Group] | None,
) -> Tensor | None:
    """The part once the sums of the source are taken."""
    if rank not in plan.source.mesh.ranks:
        check(part is None, "part", f"None: rank {rank} is not in the source's mesh", "a tensor")
        return None
    if part is None:
        raise fail("part", f"a tensor: rank {rank} is in the source's mesh", None)
    shape = plan.source.local_shape(plan.shape, rank)
    what = f"shape of rank {rank}'s part"
    check(tuple(part.shape) == shape, what, list(shape), list(part.shape))
    check(part.dtype == dtype, f"dtype of rank {rank}'s part", dtype, part.dtype)
    part = part.detach()
    if plan.source == plan.reduced:
        return part
    if groups is None:
        raise fail("groups", "one for each axis, to take the sums of the source", None)
    return reshard(part, plan.shape, plan.source, plan.reduced, rank, groups)


def _slice(tensor: Tensor, box: Box, runs: Box) -> Tensor:
    """The view of a box in what holds ``runs``."""
    for dim, run in enumerate(offset_in(box, runs)):
        tensor = tensor.narrow(dim, run.start, run.size)
    return tensor


def _take(coming: list[tuple[Box, Message]], found: Tensor, runs: Box, wanted: Box | None) -> None:
    """Wait for the messages that overlap ``wanted``, or for all, and put them in their place."""
    later = []
    for box, message in coming:
        if wanted is None or overlap(box, wanted) is not None:
            _slice(found, box, runs).copy_(message.wait())
        else:
            later.append((box, message))
    coming[:] = later
