"""``run_local``: every rank of a mesh as a thread of this process."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from blocks._checks import check, fail
from blocks.sharding.group import Group, sum_in_order
from blocks.sharding.mesh import Mesh

T = TypeVar("T")


ALIKE = "the same on all ranks of a group"
LOOK_EVERY_S = 0.2
"""How often it is looked whether a rank waits for one whose work is over."""


class _Meeting:
    """Where the ranks of a group lay down what they bring and take what they came for."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.brought: list[Any] = [None] * size
        self.ended: set[int] = set()
        """Members whose work is over: nobody will meet them again."""
        self.barrier = threading.Barrier(size, timeout=timeout_s)

    def exchange(self, rank: int, name: str, content: Any, take: Callable[[list[Any]], T]) -> T:
        """What ``take`` makes of what every rank brought, in rank order."""
        self.brought[rank] = (name, content)
        self.barrier.wait()
        names = [other for other, _ in self.brought]
        check(len(set(names)) == 1, "collectives", ALIKE, names)
        taken = take([brought for _, brought in self.brought])
        self.barrier.wait()  # nobody changes what it brought before all have taken it
        self.brought[rank] = None  # so that its memory can go
        return taken


class LocalGroup:
    """A ``Group`` of threads; sums are added in rank order.

    ``num_bytes_sent`` counts what this rank would have sent to others, padding included, in the
    collectives of ``collective_bytes``.
    """

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size = rank, size
        self.num_bytes_sent = 0
        self._meeting = meeting

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._count_reduce(tensor)
        return self._meeting.exchange(self.rank, _named("all_reduce", tensor), tensor, sum_in_order)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        self._count_reduce(tensor)
        name = _named("all_reduce_max", tensor)
        return self._meeting.exchange(self.rank, name, tensor, _largest)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self.num_bytes_sent += (self.size - 1) * tensor.nbytes
        return self._meeting.exchange(self.rank, _named("all_gather", tensor), tensor, _copies)

    def reduce_scatter(self, parts: Sequence[Tensor]) -> Tensor:
        self._count(parts)

        def take(every: list[Any]) -> Tensor:
            return sum_in_order([theirs[self.rank] for theirs in every])

        return self._meeting.exchange(self.rank, "reduce_scatter", parts, take)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        self._count(parts)

        def take(every: list[Any]) -> list[Tensor]:
            return _copies([theirs[self.rank] for theirs in every])

        mine = self._meeting.exchange(self.rank, "all_to_all", parts, take)
        found = [tuple(tensor.shape) for tensor in mine]
        expected = [tuple(shape) for shape in shapes]
        check(found == expected, "shapes of an all_to_all", expected, found)
        return mine

    def _count_reduce(self, tensor: Tensor) -> None:
        part = -(-tensor.numel() // self.size)
        self.num_bytes_sent += 2 * (self.size - 1) * part * tensor.itemsize

    def _count(self, parts: Sequence[Tensor]) -> None:
        self.num_bytes_sent += sum(p.nbytes for i, p in enumerate(parts) if i != self.rank)


def _named(collective: str, tensor: Tensor) -> str:
    return f"{collective} of {list(tensor.shape)} {tensor.dtype}"


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    found = tensors[0].clone()
    for tensor in tensors[1:]:
        torch.maximum(found, tensor, out=found)
    return found


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _ended(meetings: Mapping[tuple[str, tuple[int, ...]], _Meeting]) -> Iterator[str]:
    """Ends the meetings somebody waits at that others will not come to, and says which."""
    for (axis, ranks), meeting in meetings.items():
        if meeting.ended and meeting.barrier.n_waiting:
            meeting.barrier.abort()
            gone = sorted(meeting.ended)
            yield f"ranks {gone} at their end while others of {list(ranks)} ({axis}) wait"


def run_local(
    mesh: Mesh | Sequence[Mesh],
    work: Callable[[int, Mapping[str, Group]], T],
    *,
    timeout_s: float = 60.0,
) -> list[T]:
    """Run ``work(rank, groups)`` on every rank of a mesh, each in a thread.

    Args:
        mesh: or several without a rank in common, all at once.
        work: is given its rank and, for every axis of its mesh, the group it is in.
        timeout_s: longest wait of a rank for the others in one collective.

    Returns:
        What the ranks returned, in the order of ``mesh.ranks``, mesh after mesh.

    Raises:
        Whatever a rank raised; the first in rank order. ``ValueError`` where ranks of a group
        called different collectives or one ended while another waited for it,
        ``threading.BrokenBarrierError`` where one waited longer than ``timeout_s``.

    >>> run_local(Mesh.of(tensor=2), lambda r, g: g["tensor"].all_reduce(torch.tensor(r)).item())
    [1, 1]
    """
    check(timeout_s > 0, "timeout_s", "a positive number", timeout_s)
    meshes = (mesh,) if isinstance(mesh, Mesh) else tuple(mesh)
    mesh_of = {rank: one for one in meshes for rank in one.ranks}
    check(len(mesh_of) == sum(m.num_ranks for m in meshes), "meshes", "no common rank", meshes)
    meetings = {
        (axis, group): _Meeting(len(group), timeout_s)
        for one in meshes
        for axis in one.axes
        for group in one.groups(axis)
    }
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        own = {axis: mesh_of[rank].group(rank, axis) for axis in mesh_of[rank].axes}
        groups: dict[str, Group] = {
            axis: LocalGroup(ranks.index(rank), len(ranks), meetings[axis, ranks])
            for axis, ranks in own.items()
        }
        try:
            with torch.set_grad_enabled(grad_on):
                results[rank] = work(rank, groups)
            for axis, ranks in own.items():
                meetings[axis, ranks].ended.add(rank)
        except BaseException as error:
            errors[rank] = error
            for meeting in meetings.values():
                meeting.barrier.abort()

    grad_on = torch.is_grad_enabled()
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in mesh_of]
    for thread in threads:
        thread.start()
    in_vain: list[ValueError] = []
    for thread in threads:
        while thread.is_alive():
            thread.join(LOOK_EVERY_S)
            in_vain += [fail("collectives", ALIKE, text) for text in _ended(meetings)]
    causes = [errors[rank] for rank in mesh_of if rank in errors]
    for error in causes:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if causes:
        raise (*in_vain, *causes)[0]
    return [results[rank] for rank in mesh_of]
