"""Real speed of a token pipeline on two cores: two processes of one thread against one process.

``python -m benches.pipeline_speed`` runs five ways to compute the same gradients in turn, round
after round: one process with one thread and with two, one process that cuts the row into slices,
and two processes with and without slices. Every round begins with a probe of how much the two cores
slow each other down. A run whose threads had to wait for a core (wall over CPU time of its actions
above ``QUIET``) does not count. The speed-up comes with the factors it is made of.
"""

import argparse
import dataclasses
import multiprocessing
import tempfile
import time

import torch

from benches.pipeline_speed_ranks import work
from benches.pipeline_speed_result import NUM_RANKS, WAYS, Result, Run, Setting
from blocks.pipeline import SCHEDULES, Executor, in_process_transports
from recipes.train.stage import DecoderStage


def measure(setting: Setting, *, progress: bool = False, timeout_s: float = 1800.0) -> Result:
    """Run all ways in turn until enough runs of each count.

    Raises:
        RuntimeError: a process failed, or nothing was heard of it for ``timeout_s``.
    """
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    probes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=work, args=(rank, setting, folder, said), daemon=True)
            for rank in range(NUM_RANKS)
        ]
        try:
            for process in ranks:
                process.start()
            deadline = time.monotonic() + timeout_s
            while True:
                if said.empty():
                    failed = [p.exitcode for p in ranks if p.exitcode]
                    if failed or time.monotonic() > deadline:
                        raise RuntimeError(f"processes ended with {failed or 'no word in time'}")
                    time.sleep(0.05)
                    continue
                news = said.get()
                if news is None:
                    break
                number, found, probe = news
                probes.append(probe)
                for way, run in found.items():
                    runs[way].append(run)
                if progress:
                    text = ", ".join(
                        f"{way} {run.seconds:.2f} s{'' if run.counts else ' (disturbed)'}"
                        for way, run in found.items()
                    )
                    print(f"round {number + 1}: probe {probe:.2f}, {text}", flush=True)
            return Result(setting, runs, probes)
        finally:
            for process in ranks:
                process.kill()


def slicing_overhead(setting: Setting, num_rounds: int = 4) -> list[float]:
    """CPU time of a step with slices over that of one without, in one process, round by round.

    CPU time is worth something on a busy machine too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    stage = DecoderStage(setting.model, range(setting.num_layers))
    stage.init(0)
    data, ways = setting.data(), ("one thread", "sliced alone")
    executors = {}
    for way in ways:
        schedule = SCHEDULES["seq1f1b"](1, [len(setting.bounds(way)) - 1])
        transport = in_process_transports(1)[0]
        executors[way] = Executor(0, schedule, {0: stage}, transport, wire=lambda a, b, n: [])
    found = []
    try:
        for _ in range(num_rounds + 1):
            taken = []
            for way in ways:
                stage.zero_grad(set_to_none=True)
                began = time.thread_time()
                executors[way].step(data, [setting.bounds(way)])
                taken.append(time.thread_time() - began)
            found.append(taken[1] / taken[0])
    finally:
        torch.set_num_threads(before)
    return found[1:]  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description="A token pipeline on two cores.")
    for field in dataclasses.fields(Setting):
        name = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(name, type=int, default=field.default)
    setting = Setting(**vars(parser.parse_args()))
    print(measure(setting, progress=True).report())


if __name__ == "__main__":
    main()
