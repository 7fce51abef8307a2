"""Data parallelism around a pipeline: DDP and FSDP2 modules as stages of the executor, on gloo."""

import contextlib
import functools
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from blocks.pipeline import (
    SCHEDULES,
    DistributedTransport,
    Executor,
    SliceContext,
    TensorSpec,
    in_process_transports,
)
from blocks.sharding import (
    DistributedGroup,
    Mesh,
    make_device_mesh,
    sum_gradients,
    whole_parameters,
)
from tests.forked import run_forked

WIDTH, VOCAB, BOUNDS = 6, 7, [[0, 3, 4, 9], [0, 5, 9]]


class Stage(nn.Module):
    """Mixes each slice with the running sum of those before it, as attention would."""

    def __init__(self, stage: int, num_stages: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH) if stage == 0 else None
        self.inner = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH, bias=False))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB) if stage == num_stages - 1 else None

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        rows = slice(context.start, context.stop)
        x = self.embed(context.data["tokens"][rows]) if self.embed is not None else inputs[0]
        x = x + self.inner(self.norm(x))
        if self.head is None:
            return x
        labels = context.data["labels"][rows]
        return nn.functional.cross_entropy(self.head(x), labels, reduction="sum")


def make_stage(stage: int, num_stages: int, dtype: torch.dtype) -> Stage:
    torch.manual_seed(stage)
    return Stage(stage, num_stages).to(dtype)


def data_of(replica: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(replica)
    draw = lambda: torch.randint(VOCAB, (9,), generator=generator)  # noqa: E731
    return [{"tokens": draw(), "labels": draw()} for _ in BOUNDS]


def wire(source: int, target: int, num_tokens: int) -> list[TensorSpec]:
    return [TensorSpec((num_tokens, WIDTH), torch.float64)]


def grads_of(modules: Sequence[nn.Module]) -> list[Any]:
    """Whole gradients; NumPy, because they go through a pipe."""
    grads = [p.grad for module in modules for p in module.parameters()]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
    return [None if g is None else g.detach().numpy().copy() for g in whole]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have it: sums over rows are cut by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def single(num_stages: int, replica: int) -> list[list[Any]]:
    """Gradients of every stage for one replica's data, in one process."""
    stages = [make_stage(stage, num_stages, torch.float64) for stage in range(num_stages)]
    for data, bounds in zip(data_of(replica), BOUNDS, strict=True):
        contexts = [
            [
                SliceContext(0, i, start, stop, data, {})
                for i, (start, stop) in enumerate(itertools.pairwise(bounds))
            ]
            for _ in stages
        ]
        losses = []
        for i in range(len(bounds) - 1):
            flow: list[Tensor] = []
            for stage, of_stage in zip(stages, contexts, strict=True):
                flow = [stage(*flow, context=of_stage[i])]
            losses.extend(flow)
        for loss in reversed(losses):
            (0.5 * loss).backward()
    return [grads_of([stage]) for stage in stages]


def summed(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Gradients added up, left to right."""
    return [functools.reduce(operator.add, grads) for grads in zip(*parts, strict=True)]


def check_equal(found: list[Any], wanted: list[Any]) -> None:
    """Two addends: any order of adding them gives the same bits."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(torch.from_numpy(a), torch.from_numpy(b))


def add_up(group: DistributedGroup, grads: Mapping[str, Tensor]) -> None:
    for grad in grads.values():
        grad.copy_(group.all_reduce(grad))


def alone(rank: int, how: str, schedule: str) -> list[Any]:
    """Two replicas of a pipeline of one rank, two steps."""
    mesh = make_device_mesh(Mesh.of(data=2))
    stage, group = make_stage(0, 1, torch.float64), DistributedGroup(mesh.get_group("data"))
    module: Any = stage
    if how == "ddp":
        module = DistributedDataParallel(stage, process_group=mesh.get_group("data"))
    elif how.startswith("fsdp"):
        fully_shard(stage.inner, mesh=mesh)
        fully_shard(stage, mesh=mesh)
    transport = in_process_transports(1)[0]
    executor = Executor(0, SCHEDULES[schedule](1, [3, 2]), {0: module}, transport, wire=wire)
    for _ in range(2):
        if how.startswith("fsdp"):
            reduce = functools.partial(add_up, group) if how == "fsdp, own sum" else None
            around: Any = whole_parameters(stage, reduce=reduce, ordered=how == "fsdp, ordered")
        else:
            around = module.no_sync() if how == "ddp" else contextlib.nullcontext()
        with around:
            executor.step(data_of(rank), BOUNDS, loss_scale=0.5)
    if not how.startswith("fsdp"):
        sum_gradients(module.parameters(), group, bucket_bytes=100)
    return grads_of([stage])


@pytest.mark.parametrize(
    ("how", "schedule"),
    [
        ("plain", "gpipe"),
        ("ddp", "zb_h1"),
        ("fsdp", "gpipe"),
        ("fsdp", "zb_h1"),
        ("fsdp, ordered", "terapipe"),
        ("fsdp, own sum", "seq1f1b"),
    ],
)
def test_replicas(how: str, schedule: str) -> None:
    found = run_forked(2, lambda rank: alone(rank, how, schedule))
    one, two = single(1, 0)[0], single(1, 1)[0]
    if how.startswith("fsdp"):  # the ranks' sum of a step, twice
        wanted = summed([summed([one, two])] * 2)
    else:  # two steps of a rank, then the ranks' sum
        wanted = summed([summed([one, one]), summed([two, two])])
    for grads in found:
        check_equal(grads, wanted)


def in_grid(rank: int) -> list[Any]:
    """Two pipelines of two ranks, each stage sharded over the pipelines."""
    mesh = make_device_mesh(Mesh.of(data=2, pipeline=2))
    replica, place = divmod(rank, 2)
    stage = make_stage(place, 2, torch.float64)
    fully_shard(stage, mesh=mesh["data"])
    schedule = SCHEDULES["zb_h1"](2, [3, 2])
    with DistributedTransport(mesh.get_group("pipeline")) as transport:
        executor = Executor(place, schedule, {place: stage}, transport, wire=wire)
        with whole_parameters(stage):
            executor.step(data_of(replica), BOUNDS, loss_scale=0.5)
        return grads_of([stage])


def test_sharded_stages_of_two_pipelines() -> None:
    found = run_forked(4, in_grid)
    of_stage = [summed(pair) for pair in zip(single(2, 0), single(2, 1), strict=True)]
    for rank, grads in enumerate(found):
        check_equal(grads, of_stage[rank % 2])


def with_optimizer(rank: int) -> list[Any]:
    """FSDP2's own step once a batch, against ours: the same parameters after three updates."""
    mesh = make_device_mesh(Mesh.of(data=2))
    found = []
    for ours in (False, True):
        stage = make_stage(0, 1, torch.float64)
        fully_shard(stage, mesh=mesh)
        optimizer = torch.optim.AdamW(stage.parameters(), lr=0.1)
        for step in range(3):
            data = data_of(2 * step + rank)[0]
            context = SliceContext(0, 0, 0, 9, data, {})
            if ours:
                with whole_parameters(stage):
                    loss = stage(context=context)
                    whole = list(stage.parameters())
                    grads = torch.autograd.grad(loss, whole)
                    for parameter, grad in zip(whole, grads, strict=True):
                        parameter.grad = grad
            else:
                (2 * stage(context=context)).backward()  # it averages over two ranks
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.full_tensor().detach().numpy() for p in stage.parameters()])  # type: ignore
    return found


def test_like_fsdp_itself() -> None:
    for theirs, ours in run_forked(2, with_optimizer):
        for a, b in zip(theirs, ours, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b))


def uncovered(rank: int) -> str:
    stage = make_stage(0, 1, torch.float64)
    fully_shard(stage.inner, mesh=make_device_mesh(Mesh.of(data=2)))
    try:
        with whole_parameters(stage):
            return "entered"
    except ValueError as error:
        return str(error)


def test_parameters_left_out_are_named() -> None:
    assert "embed.weight" in run_forked(2, uncovered)[0]
