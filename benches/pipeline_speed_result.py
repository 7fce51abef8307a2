"""What ``benches.pipeline_speed`` runs, and what it makes of the runs."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks.pipeline import Trace, equal_flop_slices, merge, simulate
from blocks.pipeline.measured import durations_s, wall_over_cpu
from blocks.pipeline.replay import compute_only, replay
from recipes.model import ModelConfig

QUIET = 1.05
"""Most wall time over CPU time of the actions of a run that counts."""
NUM_RANKS = 2
WAYS = ("one thread", "two threads", "sliced alone", "unsliced pair", "sliced pair")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run.

    num_slices: of the row of num_tokens. balanced: slices of equal arithmetic instead of length.
    num_wanted: runs of every way that count, at least; max_rounds: given up after so many.
    """

    width: int = 512
    num_tokens: int = 2048
    num_layers: int = 4
    num_slices: int = 4
    balanced: bool = False
    num_wanted: int = 15
    max_rounds: int = 45
    vocab_size: int = 512

    @property
    def model(self) -> ModelConfig:
        heads = self.width // 64
        inner = 8 * self.width // 3 // 64 * 64
        return ModelConfig(
            "llama", self.vocab_size, self.width, inner, self.num_layers, heads, heads, 64,
            self.num_tokens,
        )  # fmt: skip

    @property
    def alpha(self) -> float:
        """Share of attention in the arithmetic of a row."""
        return self.num_tokens / (12 * self.width + self.num_tokens)

    def data(self) -> list[dict[str, Tensor]]:
        """One row of random tokens."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.num_tokens + 1)
        tokens = torch.randint(self.vocab_size, shape, generator=generator)
        return [{"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}]

    def bounds(self, way: str) -> tuple[int, ...]:
        if not way.startswith("sliced"):
            return (0, self.num_tokens)
        if self.balanced:
            return equal_flop_slices(self.alpha, self.num_tokens, self.num_slices, granularity=64)
        return tuple(self.num_tokens * i // self.num_slices for i in range(self.num_slices + 1))


@dataclasses.dataclass(frozen=True)
class Run:
    """One step of one way.

    seconds: from the start of the first rank to the end of the last.
    busy_s, cpu_s: wall and CPU time inside actions that compute, over all ranks.
    waited: largest wall over CPU time of a rank's actions.
    ideal_s: makespan of the same durations with transfers that take no time.
    replay_error: of the makespan replayed from the trace.
    """

    seconds: float
    busy_s: float
    cpu_s: float
    waited: float
    ideal_s: float
    replay_error: float

    @property
    def counts(self) -> bool:
        return self.waited <= QUIET


def run_of(found: Sequence[tuple[int, int, Trace]]) -> Run:
    trace = merge([trace for _, _, trace in found])
    taken = durations_s(trace)
    ideal = simulate(compute_only(trace.schedule), taken.__getitem__).makespan
    computing = [event for event in trace.events if event.action.kind.computes]
    seconds = (max(end for _, end, _ in found) - min(began for began, _, _ in found)) * 1e-9
    return Run(
        seconds,
        sum(event.duration_ns for event in computing) * 1e-9,
        sum(event.cpu_ns for event in computing) * 1e-9,
        max(wall_over_cpu(trace)),
        float(ideal),
        replay(trace).replay_error,
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs of every way and the probes of every round.

    Where fewer than ``num_wanted`` runs of a way count, its quietest are taken.
    """

    setting: Setting
    runs: Mapping[str, Sequence[Run]]
    probes: Sequence[float]

    def kept(self, way: str) -> list[Run]:
        ordered = sorted(self.runs[way], key=lambda run: run.waited)
        counted = self.num_counted(way)
        return ordered[: counted if counted >= self.setting.num_wanted else max(counted, 5)]

    def num_counted(self, way: str) -> int:
        return sum(run.counts for run in self.runs[way])

    @property
    def enough(self) -> bool:
        return all(self.num_counted(way) >= self.setting.num_wanted for way in WAYS)

    def seconds(self, way: str) -> float:
        return statistics.median(run.seconds for run in self.kept(way))

    def speed_up(self, way: str) -> float:
        """Over one process with one thread."""
        return self.seconds("one thread") / self.seconds(way)

    @property
    def overhead(self) -> float:
        """CPU time of one process with slices over that without, round by round."""
        pairs = zip(self.runs["sliced alone"], self.runs["one thread"], strict=True)
        return statistics.median(a.cpu_s / b.cpu_s for a, b in pairs)

    @property
    def replay_error(self) -> float:
        return statistics.median(abs(run.replay_error) for run in self.kept("sliced pair"))

    @property
    def factors(self) -> dict[str, float]:
        """Factors whose product is the speed-up of the sliced pair."""
        alone, pair = self.kept("sliced alone"), self.kept("sliced pair")
        busy = statistics.median(run.busy_s for run in pair)
        ideal = statistics.median(run.ideal_s for run in pair)
        return {
            "processes": NUM_RANKS,
            "1/overhead": self.seconds("one thread") / self.seconds("sliced alone"),
            "1/contention": statistics.median(run.seconds for run in alone) / busy,
            "1-bubble": busy / (NUM_RANKS * ideal),
            "1-stall": ideal / self.seconds("sliced pair"),
        }

    def report(self) -> str:
        setting = self.setting
        lines = [
            f"T={setting.num_tokens}, d={setting.width}, {setting.num_layers} layers, fp32, slices "
            f"at {setting.bounds('sliced pair')}; two processes slow each other down "
            f"{statistics.median(self.probes):.2f}x in products"
        ]
        for way in WAYS:
            all_runs = self.runs[way]
            lines.append(
                f"{way:14} {self.seconds(way):6.3f} s {self.speed_up(way):5.2f}x   "
                f"{self.num_counted(way)} of {len(all_runs)} runs count"
            )
        factors = " x ".join(f"{value:.3f} {name}" for name, value in self.factors.items())
        m = len(self.setting.bounds("sliced pair")) - 1
        lines.append(f"speed-up = {factors}; equal slices give at most {2 * m / (m + 1):.2f}")
        lines.append(
            f"slicing overhead in CPU time {self.overhead:.3f}; "
            f"replay misses the makespan by {self.replay_error:.1%}"
        )
        return "\n".join(lines)
