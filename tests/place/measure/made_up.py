"""Engines that compute nothing and take the time of a profile."""

import collections
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from blocks.kv import BlockManager
from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import EngineSettings, StepTime, load_of
from blocks.sched.placement import Placement
from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from blocks.sched.workload import Workload, gamma_workload
from recipes.place.measure import ClockedGroup
from recipes.place.measure.clocked_group import Cost
from recipes.serve import Engine, EngineConfig
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import StepResult
from recipes.serve.outputs import Delta
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw, Drawn
from tests.serve.models import tiny_decoder, tiny_tokenizer

SETTINGS = EngineSettings(
    token_budget=512, max_num_seqs=32, max_model_len=256, block_size=16, overlap=False
)
KV_TOKENS = 16384


class IdleRunner:
    """A ``ModelRunner`` that draws token 7, whatever it is asked; ``stage_s`` of its last batch."""

    model = tiny_decoder().config
    dtype, weight_bytes, block_size = "float32", 0, SETTINGS.block_size
    num_blocks = KV_TOKENS // SETTINGS.block_size + 1
    seq_lens: Tensor | None = None

    def __init__(self, step_time: StepTime, depth: int = 1) -> None:
        self._step_time, self.depth = step_time, depth
        self.stage_s: tuple[float, ...] = ()
        self._results: collections.deque[StepResult] = collections.deque()

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        self.stage_s = self._step_time(load_of(batch))
        self.seq_lens = torch.ones(1, dtype=torch.int64)
        self._results.append(StepResult([Drawn(7) for _ in draws], []))

    def collect(self) -> StepResult:
        return self._results.popleft()

    def explain(self) -> str:
        return "none"

    def close(self) -> None:
        pass


def idle_engine(profile: Profile, configuration: tuple[int, int], depth: int = 1) -> Engine:
    config = EngineConfig(
        kv_bytes=1,
        max_model_len=SETTINGS.max_model_len,
        max_num_seqs=SETTINGS.max_num_seqs,
        token_budget=SETTINGS.token_budget,
        block_size=SETTINGS.block_size,
    )
    runner = IdleRunner(StepTime(profile.timing(configuration)), depth)
    return Engine(runner, detokenizers(tiny_tokenizer()), config)


def profile_s(engine: Engine, step: Callable[[], list[Delta]]) -> tuple[list[Delta], float]:
    """A step counts for what the profile says."""
    deltas = step()
    assert isinstance(engine.runner, IdleRunner)
    return deltas, sum(engine.runner.stage_s)


def half_s(
    engine: Engine, half: Callable[[], list[Delta]]
) -> tuple[list[Delta], float, tuple[float, ...]]:
    """Half a step counts in the stages for what the profile says, and for nothing elsewhere."""
    assert isinstance(engine.runner, IdleRunner)
    engine.runner.stage_s = ()
    deltas = half()
    return deltas, 0.0, engine.runner.stage_s


def made_up(model: str, scale: float = 1.0, uneven: float = 0.0) -> Profile:
    """A prompt takes 2 ms and 0.1 ms a token; a decode step 4 ms, 0.5 ms a sequence.

    Args:
        uneven: so much more of it in the first stage, and less in the others.
    """

    def row(op: int, pp: int) -> Timing:
        def cut(seconds: float) -> tuple[float, ...]:
            each_s = scale * seconds / (1 + 0.7 * (op - 1)) / pp
            more_s = each_s * uneven * (pp > 1)
            return (each_s + more_s, *[each_s - more_s] * (pp - 1))

        return Timing(
            Configuration(op, pp),
            (1,) * pp,
            kv_bytes_per_token=1,
            prefill=tuple(PrefillTime(n, cut(0.002 + n * 1e-4)) for n in (1, 1001)),
            decode=tuple(
                DecodeTime(b, c, cut(0.004 + b * 5e-4 + b * c * 1e-6))
                for b in (1, 101)
                for c in (1, 1001)
            ),
        )

    source = (Provenance("derived", "made up"),)
    return Profile(model, "d", source, (row(1, 1), row(1, 2), row(2, 1)))


def traffic(seed: int, rates: list[float], cv: float, duration_s: float) -> Workload:
    rng = np.random.default_rng(seed)
    made = gamma_workload(rates, cv, duration_s, rng, [f"m{at}" for at in range(len(rates))])
    count = made.num_requests
    return made.with_lengths(rng.integers(4, 100, count), rng.integers(1, 12, count))


def groups_of(
    placement: Placement,
    profiles: dict[str, Profile],
    pace: Callable[[int], float] = lambda group: 1.0,
) -> list[ClockedGroup]:
    """On the running loop.

    Args:
        pace: of a group just now; its steps take so many times what the profile says.
    """

    def at_pace(group: int) -> Cost:
        def cost(engine: Engine, step: Callable[[], list[Delta]]) -> tuple[list[Delta], float]:
            factor = pace(group)
            deltas, seconds = profile_s(engine, step)
            return deltas, factor * seconds

        return cost

    return [
        ClockedGroup(
            {model: idle_engine(profiles[model], group.configuration) for model in group.models},
            at_pace(at),
        )
        for at, group in enumerate(placement.groups)
    ]
