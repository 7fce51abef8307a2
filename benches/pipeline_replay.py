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
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.attention import SlicePrefix
from blocks.pipeline import (
    Executor,
    Recorder,
    Schedule,
    SliceContext,
    TensorSpec,
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
from blocks.pipeline.schedules import seq1f1b

VOCAB = 512
NUM_RANKS = 2
CUTS = {"equal": (0, 4, 8, 12, 16), "falling": (0, 4, 7, 10, 12, 14, 15, 16)}
"""Where the slices begin, in sixteenths of the sequence. Falling lengths tell what length and what
prefix cost."""
QUIET = 1.05
"""Most wall time over CPU time of a step that counts: above, something else ran."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run: steps whose sequences are cut in one way and another in turn."""

    width: int
    num_tokens: int
    layers_per_rank: int
    num_steps: int
    num_sequences: int = 1

    def bounds(self, cut: str) -> list[tuple[int, ...]]:
        return [tuple(self.num_tokens * at // 16 for at in CUTS[cut])] * self.num_sequences

    def schedule(self, cut: str) -> Schedule:
        return seq1f1b(NUM_RANKS, (len(CUTS[cut]) - 1,) * self.num_sequences)

    def data(self) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_sequences, self.num_tokens + 1)
        tokens = torch.randint(VOCAB, shape, generator=generator)
        return [{"tokens": row[:-1], "labels": row[1:]} for row in tokens]

    def wire(self, source: int, target: int, num_tokens: int) -> list[TensorSpec]:
        return [TensorSpec((num_tokens, self.width), torch.float32)]


class Layer(nn.Module):
    """Causal attention over the slices so far, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, context: SliceContext) -> Tensor:
        prefix = context.state.get(self)
        if prefix is None:
            length = len(context.data["tokens"])
            prefix = context.state[self] = SlicePrefix.empty(length, self.heads, 64, dtype=x.dtype)
        query, key, value = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, 64)).unbind(1)
        x = x + self.out(prefix.attend(query, key, value, context.start).flatten(1))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Stage(nn.Module):
    """A rank's layers; the first embeds, the last sums losses."""

    def __init__(self, setting: Setting, rank: int) -> None:
        super().__init__()
        width = setting.width
        self.embed = nn.Embedding(VOCAB, width) if rank == 0 else None
        self.layers = nn.ModuleList(Layer(width) for _ in range(setting.layers_per_rank))
        self.head = nn.Linear(width, VOCAB, bias=False) if rank == NUM_RANKS - 1 else None

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        rows = slice(context.start, context.stop)
        x = inputs[0] if self.embed is None else self.embed(context.data["tokens"][rows])
        for layer in self.layers:
            x = layer(x, context)
        if self.head is None:
            return x
        return F.cross_entropy(self.head(x), context.data["labels"][rows], reduction="sum")


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


SMALL = Setting(width=256, num_tokens=1024, layers_per_rank=2, num_steps=20)
LARGE = Setting(width=512, num_tokens=2048, layers_per_rank=2, num_steps=24)


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
