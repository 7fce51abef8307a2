"""One rank of gloo pipelines, as a process: ``python -m tests.pipeline.gloo_worker JSON``."""

import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blocks.pipeline import Action, DistributedTransport, PipelineStuck, TensorSpec
from blocks.pipeline.transport import Handle
from tests.pipeline.tiny_programs import Program, same_bits


class Delayed(DistributedTransport):
    """Hands messages over late, and sometimes asks late."""

    rng = random.Random(0)

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> Handle:
        time.sleep(self.rng.random() * 2e-3)
        return super().send(tensor, target_rank, action)

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> Handle:
        if self.rng.random() < 0.2:
            time.sleep(self.rng.random() * 2e-3)
        return super().receive(spec, source_rank, action)


def random_programs(rank: int, size: int, first_seed: int, count: int) -> str:
    """Every rank compares its own stages with the plain loop; the seeds that went wrong."""
    transports, wrong = {}, []
    for num_ranks in range(1, size + 1):
        group = dist.new_group(list(range(num_ranks)))
        if rank < num_ranks:
            assert isinstance(group, dist.ProcessGroup)
            transports[num_ranks] = Delayed(group)
    Delayed.rng = random.Random(rank)
    for seed in range(first_seed, first_seed + count):
        program = Program(seed, max_ranks=size)
        schedule = program.schedule
        if rank < schedule.num_ranks:
            expected = program.plain()
            program.step(program.executor(transports[schedule.num_ranks]))
            found = program.take()
            mine = [i for i, at in enumerate(schedule.placement) if at == rank]
            if not all(same_bits(found[i], expected[i]) for i in mine):
                wrong.append(seed)
    for transport in transports.values():
        transport.close()
    return f"wrong: {wrong}"


def stuck(rank: int, abort_after_s: float, stand_still_s: float) -> str:
    """Rank 1 stands still in one backward, until another gives up or for ``stand_still_s``; every
    rank ends with an error that says so."""
    program = Program(0)
    while program.schedule.num_ranks != 3 or 1 not in program.schedule.placement[:-1]:
        program = Program(program.seed + 1)
    schedule = program.schedule
    asleep = max(stage for stage, at in enumerate(schedule.placement) if at == 1)
    reports: list[str] = []
    with DistributedTransport() as transport:
        executor = program.executor(
            transport, report_after_s=1.0, on_report=reports.append, abort_after_s=abort_after_s
        )
        module: Any = program.stages[asleep]
        dist.barrier()  # waiting for a process that is not there yet would count as well
        began = time.monotonic()

        def stand_still(*_: Any) -> None:
            while transport.given_up() is None and time.monotonic() < began + stand_still_s:
                time.sleep(0.1)

        module.register_full_backward_pre_hook(stand_still)
        try:
            program.step(executor)
        except PipelineStuck as error:
            seconds = time.monotonic() - began
            return json.dumps({"reports": reports, "error": str(error), "seconds": seconds})
    return "no error"


def first_report(rank: int) -> str:
    """Seconds from the beginning of a step in which rank 1 stands still to the first report."""
    program = Program(0)
    while program.schedule.num_ranks != 3:
        program = Program(program.seed + 1)
    stages = [i for i, at in enumerate(program.schedule.placement) if at == 1]
    times: list[float] = []
    with DistributedTransport() as transport:
        executor = program.executor(transport, on_report=lambda _: times.append(time.monotonic()))
        began = time.monotonic()
        program.stages[min(stages)].register_forward_pre_hook(lambda *_: _wait(began + 8.0))
        program.step(executor)
    return f"{times[0] - began:.2f}" if times else ""


def _wait(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def interrupted(rank: int) -> str:
    """Rank 1 is interrupted while it waits for rank 0, which takes its time."""
    program = Program(0)
    while program.schedule.placement[:2] != (0, 1) or program.schedule.num_ranks != 2:
        program = Program(program.seed + 1)
    with DistributedTransport() as transport:
        executor = program.executor(transport)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored
        dist.barrier()  # they start together, however late one of them is
        if rank == 1:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            program.stages[0].register_forward_pre_hook(lambda *_: time.sleep(3.0))
        try:
            program.step(executor)
        except (KeyboardInterrupt, PipelineStuck) as error:
            return repr(error)
    return "no error"


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    store = dist.FileStore(settings["store"], settings["size"])
    rank = settings["rank"]
    dist.init_process_group("gloo", rank=rank, world_size=settings["size"], store=store)
    print(globals()[settings["work"]](rank, *settings["arguments"]), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
