"""What the two processes of ``benches.pipeline_speed`` do."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benches.pipeline_speed_result import NUM_RANKS, WAYS, Run, Setting, run_of
from blocks.pipeline import (
    SCHEDULES,
    Executor,
    Recorder,
    TensorSpec,
    TraceEvent,
    in_process_transports,
)
from blocks.pipeline.distributed import DistributedTransport
from recipes.train.stage import DecoderStage


class _Rank:
    """What a process has: the whole model on rank 0, and its stage of the pipeline."""

    def __init__(self, rank: int, setting: Setting, transport: DistributedTransport) -> None:
        self.rank, self.setting = rank, setting
        half, layers = setting.num_layers // 2, setting.num_layers
        parts = (range(half), range(half, layers))
        self.part = DecoderStage(setting.model, parts[rank], stage=rank, num_stages=NUM_RANKS)
        self.whole = DecoderStage(setting.model, range(layers)) if rank == 0 else None
        for stage in (self.part, self.whole):
            if stage is not None:
                stage.init(0)
        self.recorder: Recorder | None = None
        self.executors = {way: self._executor(way, transport) for way in WAYS}
        self.data = setting.data()

    def _executor(self, way: str, transport: DistributedTransport) -> Executor | None:
        pair = way.endswith("pair")
        if not pair and self.whole is None:
            return None
        ranks = NUM_RANKS if pair else 1
        stages: dict[int, Any] = {self.rank: self.part} if pair else {0: self.whole}
        schedule = SCHEDULES["seq1f1b"](ranks, [len(self.setting.bounds(way)) - 1])
        return Executor(
            self.rank if pair else 0,
            schedule,
            stages,
            transport if pair else in_process_transports(1)[0],
            wire=lambda source, target, num: [TensorSpec((num, self.setting.width), torch.float32)],
            on_event=self._hear,
        )

    def _hear(self, event: TraceEvent) -> None:
        if self.recorder is not None:
            self.recorder(event)

    def run(self, way: str, step: int) -> Run | None:
        """A step of both ranks; None where this is not rank 0."""
        executor, mine = self.executors[way], None
        bounds = [self.setting.bounds(way)]
        torch.set_num_threads(2 if way == "two threads" else 1)
        dist.barrier()
        if executor is not None:
            self.part.zero_grad(set_to_none=True)
            if self.whole is not None:
                self.whole.zero_grad(set_to_none=True)
            self.recorder = Recorder(executor.rank, executor.schedule, bounds, {"step": step})
            began = time.monotonic_ns()
            executor.step(self.data, bounds, loss_scale=1 / self.setting.num_tokens)
            mine = (began, time.monotonic_ns(), self.recorder.trace())
        torch.set_num_threads(1)
        every: list[Any] = [None] * NUM_RANKS
        dist.all_gather_object(every, mine)
        return run_of([one for one in every if one is not None]) if self.rank == 0 else None

    def gradients(self, way: str) -> dict[str, Tensor]:
        stage = self.part if way.endswith("pair") else self.whole
        assert stage is not None
        return {name: p.grad for name, p in stage.owned() if p.grad is not None}


def _probe(rank: int) -> float:
    """How much longer a product takes on rank 0 when rank 1 makes one too."""
    x = torch.ones(512, 512)
    times = []
    for both in (False, True):
        dist.barrier()
        began = time.perf_counter()
        if both or rank == 0:
            for _ in range(12):
                torch.mm(x, x)
        times.append(time.perf_counter() - began)
    return times[1] / times[0]


def work(rank: int, setting: Setting, folder: str, said: Any) -> None:
    torch.set_num_threads(1)
    store, timeout = dist.FileStore(f"{folder}/store", NUM_RANKS), timedelta(seconds=300)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS, timeout=timeout)
    with DistributedTransport() as transport:
        here = _Rank(rank, setting, transport)
        _check(here)
        runs: dict[str, list[Run]] = {way: [] for way in WAYS}
        probes: list[float] = []
        for number in range(setting.max_rounds):
            probes.append(_probe(rank))
            for way in WAYS:
                run = here.run(way, number)
                if run is not None:
                    runs[way].append(run)
            fewest = min(sum(run.counts for run in runs[way]) for way in WAYS)
            go_on = [fewest < setting.num_wanted]
            dist.broadcast_object_list(go_on, src=0)
            if rank == 0:
                said.put((number, {way: found[-1] for way, found in runs.items()}, probes[-1]))
            if not go_on[0]:
                break
        dist.barrier()
    if rank == 0:
        said.put(None)
    dist.destroy_process_group()


def _check(here: _Rank) -> None:
    """Both ways to slice give the same bits; sliced or not, the same gradients up to rounding."""
    grads = {}
    for way in WAYS:  # warms up too
        here.run(way, -1)
        if here.whole is not None or way.endswith("pair"):
            grads[way] = {name: g.clone() for name, g in here.gradients(way).items()}
    if here.whole is None:
        return
    for name, grad in grads["sliced pair"].items():
        alike = torch.equal(grad, grads["sliced alone"][name])
        assert alike, f"{name}: other bits in two processes"
        torch.testing.assert_close(grad, grads["one thread"][name], rtol=1e-3, atol=1e-6)
