"""A real pipeline of two processes with one thread each, traced: what replay makes of its steps.

``python -m benches.pipeline_replay`` prints a line a step.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benches.pipeline_model import CUTS, LARGE, NUM_RANKS, SMALL, Setting, Stage
from blocks.pipeline import (
    Executor,
    Recorder,
    Trace,
    TraceEvent,
    read_traces,
    replay,
    what_if,
    write_traces,
)
from blocks.pipeline.distributed import DistributedTransport
from blocks.pipeline.isolate import assemble, isolate_ranks
from blocks.pipeline.measured import wall_over_cpu

QUIET = 1.05
"""Most wall time over CPU time of a step that counts: above, something else ran."""


def _work(rank: int, setting: Setting, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    store = dist.FileStore(f"{folder}/store", NUM_RANKS)
    timeout = timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS, timeout=timeout)
    data = setting.data()
    stage = Stage(setting, rank)
    traces, recorder = [], None

    def hear(event: TraceEvent) -> None:
        assert recorder is not None
        recorder(event)

    with DistributedTransport() as transport:
        executors = {
            cut: Executor(
                rank,
                setting.schedule(cut),
                {rank: stage},
                transport,
                wire=setting.wire,
                on_event=hear,
            )
            for cut in CUTS
        }
        turns = itertools.islice(itertools.cycle(CUTS), setting.num_steps + len(CUTS))
        for number, cut in enumerate(turns, -len(CUTS)):  # the first of each warms up
            bounds = setting.bounds(cut)
            dist.barrier()
            meta = {"step": number, "cut": cut, "device": "CPU, 1 thread a rank"}
            recorder = Recorder(rank, setting.schedule(cut), bounds, meta)
            result = executors[cut].step(data, bounds)
            stage.zero_grad(set_to_none=True)
            losses = [
                [result.losses[q, n].item() for n in range(count)] if result.losses else []
                for q, count in enumerate(setting.schedule(cut).num_slices)
            ]
            if number >= 0:
                traces.append(recorder.trace(losses if result.losses else ()))
        dist.barrier()
    write_traces(f"{folder}/rank{rank}.jsonl", traces)
    dist.destroy_process_group()


def run(setting: Setting, timeout_s: float = 240.0) -> list[Trace]:
    """Traces of all steps, ranks merged.

    Raises:
        RuntimeError: a rank failed or took longer than ``timeout_s``.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_work, args=(rank, setting, folder), daemon=True)
            for rank in range(NUM_RANKS)
        ]
        try:
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(timeout_s)
            codes = [process.exitcode for process in ranks]
            if any(codes):
                raise RuntimeError(f"ranks ended with {codes}")
            return read_traces(*(Path(folder) / f"rank{rank}.jsonl" for rank in range(NUM_RANKS)))
        finally:
            for process in ranks:
                process.kill()


def is_quiet(trace: Trace) -> bool:
    """Whether both threads could run all the time."""
    return max(wall_over_cpu(trace)) <= QUIET


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors of makespans.

    replays: of the replay of each step that counts: those that were quiet, or the quieter half
        where fewer were.
    prediction: of steps with equal slices, predicted from those with falling ones; medians, in CPU
        time, which other work on the machine changes little. cpu_s is what was to be predicted.
    num_quiet, num_steps: steps that were quiet, and all.
    """

    replays: tuple[float, ...]
    prediction: float
    cpu_s: float
    num_quiet: int
    num_steps: int


def errors(traces: Sequence[Trace], setting: Setting) -> Errors:
    """What replay and prediction miss."""
    ordered = sorted(traces, key=lambda trace: max(wall_over_cpu(trace)))
    num_quiet = sum(map(is_quiet, traces))
    kept = ordered[: max(num_quiet, len(traces) // 2)]
    bounds, schedule = setting.bounds("equal"), setting.schedule("equal")
    known = statistics.median(
        float(replay(trace, clock="cpu").replayed.makespan)
        for trace in traces
        if trace.meta["cut"] == "equal"
    )
    predicted = statistics.median(
        float(what_if(trace, schedule, bounds=bounds, clock="cpu").timeline.makespan)
        for trace in traces
        if trace.meta["cut"] == "falling"
    )
    replays = tuple(replay(trace).replay_error for trace in kept)
    return Errors(replays, predicted / known - 1, known, num_quiet, len(traces))


def isolated_s(setting: Setting) -> float:
    """Seconds of a step with equal slices, simulated from ranks that ran one after another."""
    torch.set_num_threads(1)
    found = isolate_ranks(
        setting.schedule("equal"),
        lambda rank: {rank: Stage(setting, rank)},
        setting.data(),
        setting.bounds("equal"),
        wire=setting.wire,
    )
    return float(assemble(found.traces, clock="cpu").makespan)


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay traced steps of two processes.")
    parser.add_argument("--large", action="store_true", help="2048 tokens, width 512")
    parser.add_argument("--sequences", type=int, default=1, help="in a step")
    parser.add_argument("-o", "--output", help="keep the traces in this file")
    arguments = parser.parse_args()
    setting = LARGE if arguments.large else SMALL
    setting = dataclasses.replace(setting, num_sequences=arguments.sequences)
    traces = run(setting)
    for trace in traces:
        ratios = ", ".join(f"{ratio:.3f}" for ratio in wall_over_cpu(trace))
        print(f"step {trace.meta['step']}, {trace.meta['cut']}: {replay(trace)}; {ratios}")
    print(errors(traces, setting))
    if arguments.output:
        write_traces(arguments.output, traces)


if __name__ == "__main__":
    main()
