"""Every collective against its one-process twin, forward and backward, in threads and on gloo."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from blocks.sharding import (
    DistributedGroup,
    Group,
    LocalGroup,
    Mesh,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    all_gather,
    all_reduce,
    all_to_all,
    axis_groups,
    identity,
    make_device_mesh,
    mask,
    narrow,
    reduce_scatter,
    reference,
    run_local,
    sum_in_order,
)
from tests.forked import run_forked
from tests.sharding.spmd import line, spmd

SHAPE = (5, 3)
CASES: dict[str, tuple[Any, Any, Callable[[Tensor, Group], Tensor], Callable[..., Any]]] = {
    # name: source, target, the collective, its twin
    "all_reduce": (Partial(), Replicate(), all_reduce, reference.all_reduce),
    "narrow": (
        Replicate(), Shard(0), lambda x, g: narrow(x, g, 0), lambda p: reference.narrow(p, 0),
    ),
    "mask": (Replicate(), Partial(), mask, reference.mask),
    "all_gather": (
        Shard(0), Replicate(),
        lambda x, g: all_gather(x, g, 0, size=SHAPE[0]), lambda p: reference.all_gather(p, 0),
    ),
    "reduce_scatter": (
        Partial(), Shard(1),
        lambda x, g: reduce_scatter(x, g, 1), lambda p: reference.reduce_scatter(p, 1),
    ),
    "all_to_all": (
        Shard(0), Shard(1),
        lambda x, g: all_to_all(x, g, 0, 1, size=SHAPE[0]),
        lambda p: reference.all_to_all(p, 0, 1),
    ),
}  # fmt: skip


def make_parts(source: Any, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    whole = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    parts = reference.shard(whole, ShardingSpec.of(line(size), tensor=source))
    if source == Partial():
        parts = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in parts]
    return parts


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_threads_equal_the_twin(name: str, size: int) -> None:
    source, _, collective, twin = CASES[name]
    parts = make_parts(source, size)
    found = run_local(line(size), lambda rank, groups: collective(parts[rank], groups["tensor"]))
    for rank, expected in enumerate(twin(parts)):
        torch.testing.assert_close(found[rank], expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str, size: int) -> None:
    source, target, collective, _ = CASES[name]
    specs = [ShardingSpec.of(line(size), tensor=p) for p in (source, target)]
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)

    def whole(x: Tensor) -> Tensor:
        def program(rank: int, groups: Mapping[str, Group], part: Tensor) -> Tensor:
            addend = source == Partial()  # what ranks add up may only be scaled
            return collective(2 * part if addend else part.square(), groups["tensor"])

        return spmd(program, specs[:1], specs[1], x)

    torch.autograd.gradcheck(whole, x)


@pytest.mark.parametrize("gather", ["identity", "all_gather"])
def test_gradients_of_what_differs_by_rank_are_summed(gather: str) -> None:
    """y = sum over ranks of f_rank(x): rank r scales by r + 1."""
    mesh = line(3)
    source = Replicate() if gather == "identity" else Shard(0)
    specs = [ShardingSpec.of(mesh, tensor=p) for p in (source, Replicate())]
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)

    def program(rank: int, groups: Mapping[str, Group], part: Tensor) -> Tensor:
        group = groups["tensor"]
        if gather == "identity":
            whole = identity(part, group)
        else:
            whole = all_gather(part, group, 0, size=SHAPE[0], gradient="partial")
        return all_reduce((rank + 1) * whole.square(), group)

    y = spmd(program, specs[:1], specs[1], x)
    torch.testing.assert_close(y, 6 * x.square())
    assert torch.autograd.gradcheck(lambda x: spmd(program, specs[:1], specs[1], x), x)


@given(num_tensors=st.integers(1, 5), seed=st.integers(0, 99))
def test_sum_in_order_is_a_float32_sum(num_tensors: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(7, generator=generator).bfloat16() for _ in range(num_tensors)]
    total = torch.zeros(7)
    for tensor in tensors:
        total += tensor.float()
    assert torch.equal(sum_in_order(tensors), total.bfloat16())


def gloo_work(rank: int) -> dict[str, Any]:
    """Every case forward and backward, in the backend's order and in ours."""
    groups = axis_groups(make_device_mesh(line(3)))
    found: dict[str, Any] = {}
    for ordered in (False, True):
        group = DistributedGroup(groups["tensor"].process_group, ordered=ordered)  # type: ignore
        for name, (source, _, collective, _) in CASES.items():
            part = make_parts(source, 3)[rank].requires_grad_()
            output = collective(part, group)
            (grad,) = torch.autograd.grad(output, part, torch.ones_like(output) * 2)
            found[f"{name} {ordered}"] = (output.detach().numpy(), grad.numpy())
        half = torch.full((5,), 1.0 + rank / 256).bfloat16()
        found[f"bfloat16 {ordered}"] = group.all_reduce(half).float().numpy()
    return found


def test_gloo_equals_threads() -> None:
    every = run_forked(3, gloo_work)
    for name, (source, _, collective, _) in CASES.items():
        parts = make_parts(source, 3)

        def work(
            rank: int, groups: Mapping[str, Group], parts: Any = parts, collective: Any = collective
        ) -> tuple[Tensor, Tensor]:
            part = parts[rank].clone().requires_grad_()
            output = collective(part, groups["tensor"])
            (grad,) = torch.autograd.grad(output, part, torch.ones_like(output) * 2)
            return output.detach(), grad

        for rank, (output, grad) in enumerate(run_local(line(3), work)):
            for ordered in (False, True):
                theirs, their_grad = map(torch.from_numpy, every[rank][f"{name} {ordered}"])
                torch.testing.assert_close(theirs, output, rtol=1e-15, atol=1e-15)
                torch.testing.assert_close(their_grad, grad, rtol=1e-15, atol=1e-15)
                if ordered:
                    assert torch.equal(theirs, output), f"{name}: one order, one sum"
    tensors = [torch.full((5,), 1.0 + rank / 256).bfloat16() for rank in range(3)]
    for found in every:
        expected = sum_in_order(tensors).float()
        assert torch.equal(torch.from_numpy(found["bfloat16 True"]), expected)


def grid_work(rank: int) -> list[float]:
    mesh = Mesh.of(data=2, tensor=2)
    groups = axis_groups(make_device_mesh(mesh))
    x = torch.tensor(float(10**rank))
    return [groups[axis].all_reduce(x).item() for axis in mesh.axes]


def test_axes_of_a_grid_have_their_own_groups() -> None:
    mesh = Mesh.of(data=2, tensor=2)
    expected = [
        [float(sum(10**other for other in mesh.group(rank, axis))) for axis in mesh.axes]
        for rank in mesh.ranks
    ]
    assert run_forked(4, grid_work) == expected


def late_work(rank: int) -> list[str]:
    """Rank 1 comes to the second collective late."""
    said: list[str] = []
    group = DistributedGroup(report_after_s=0.3, on_report=said.append)
    for number in range(3):
        if rank == 1 and number == 1:
            time.sleep(1.2)
        assert group.all_reduce(torch.ones(1)).item() == 2
    return said


def test_a_rank_that_waits_says_so_once() -> None:
    waiting, late = run_forked(2, late_work)
    words = "rank 0 waits for others of ranks [0, 1] in all_reduce, its collective 2"
    assert sum(words in line for line in waiting) == 1
    assert not any("collective 2" in line for line in late)


def test_protocol() -> None:
    def work(rank: int, groups: Mapping[str, Group]) -> bool:
        return isinstance(groups["tensor"], Group) and isinstance(groups["tensor"], LocalGroup)

    assert run_local(line(2), work) == [True, True]


def test_a_failing_rank_is_named_and_nobody_waits() -> None:
    def work(rank: int, groups: Mapping[str, Group]) -> Tensor:
        if rank == 1:
            raise RuntimeError("rank 1 broke")
        return groups["tensor"].all_reduce(torch.ones(1))

    with pytest.raises(RuntimeError, match="rank 1 broke"):
        run_local(line(2), work)


def test_different_collectives_are_refused() -> None:
    def work(rank: int, groups: Mapping[str, Group]) -> Any:
        group = groups["tensor"]
        return group.all_reduce(torch.ones(1)) if rank else group.all_gather(torch.ones(1))

    with pytest.raises(ValueError, match="the same on all ranks"):
        run_local(line(2), work)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the same on all ranks.*all_reduce of \[1\] torch.float32"
    ):
        run_local(line(2), lambda rank, groups: groups["tensor"].all_reduce(torch.ones(1 + rank)))


def test_a_rank_that_ends_early_is_named() -> None:
    def work(rank: int, groups: Mapping[str, Group]) -> Any:
        return groups["tensor"].all_reduce(torch.ones(1)) if rank else None

    with pytest.raises(ValueError, match=r"ranks \[0\] at their end while others of \[0, 1\]"):
        run_local(line(2), work)


def test_what_a_rank_brought_may_be_changed_after() -> None:
    def work(rank: int, groups: Mapping[str, Group]) -> Tensor:
        x, totals = torch.full((1000,), float(rank)), []
        for _ in range(50):
            totals.append(groups["tensor"].all_reduce(x)[0])
            x += 1
        return torch.stack(totals)

    expected = 1.0 + 2 * torch.arange(50)
    assert all(torch.equal(found, expected) for found in run_local(line(2), work))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: all_gather(torch.ones(2), g, 0, size=5), "size of dim 0"),
        (lambda g: all_gather(torch.ones(2), g, 0, gradient="sum"), "gradient"),  # type: ignore
        (lambda g: all_to_all(torch.ones(2, 2), g, 1, 1), "target_dim"),
        (lambda g: all_to_all(torch.ones(2, 2), g, 0, 1, size=7), "size of dim 0"),
    ],
)
def test_refusals(call: Callable[[Group], Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        run_local(line(2), lambda rank, groups: call(groups["tensor"]))
