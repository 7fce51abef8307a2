"""Tokens a second of an engine over stages, with one batch under way and with several."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benches.stage_pieces import BLOCK, Stages
from benches.stage_runner import StageRunner
from blocks.sched import Batch
from recipes.model.tokenizer import Tokenizer
from recipes.serve import Engine, EngineConfig, Job, SamplingParams
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import StepResult
from recipes.serve.parallel import ParallelRunner, fork_ranks
from recipes.serve.parallel.piece_cost import PieceCost
from recipes.serve.parallel.step_slices import StepSlices
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw

NUM_REQUESTS, PROMPT_LEN, OUTPUT_LEN = 64, 32, 20
LIMITS: dict[str, Any] = {
    "max_num_seqs": NUM_REQUESTS, "token_budget": 256, "block_size": BLOCK, "kv_bytes": 64 << 20,
}  # fmt: skip


class TimedStages(StageRunner[tuple[float, StepResult]]):
    """Keeps the clock of stages that each have a processor: a run begins when its stage and the
    stage before are done.

    Only processor time counts, of the stages and of the engine between two calls, so neighbours on
    the machine do not.

    Args:
        stages: of the model. depth: most batches under way. cost: steps are cut by it; None: whole.
    """

    def __init__(self, stages: Stages, depth: int, cost: PieceCost | None = None) -> None:
        super().__init__(stages, depth)
        self.now_s = 0.0
        self._slices = StepSlices(len(stages.parts), cost)
        self._free_s = [0.0 for _ in stages.parts]
        self._left_s = time.process_time()

    @torch.inference_mode()
    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        assert not prompts, "prompts are not scored here"
        copies, plain = self._manager.take_copies(), self._tensors.plain(batch)
        bounds = self._slices.bounds(plain, alone=not self._out)
        self._engine_worked()
        hidden = []
        at_s = self.now_s
        for piece in plain.cut(bounds):
            stream, stage_s = self._computed(piece, copies)
            at_s = self.now_s
            for stage, seconds in enumerate(stage_s):
                at_s = self._free_s[stage] = max(at_s, self._free_s[stage]) + seconds
            copies = []
            hidden.append(stream)
        began_s = time.process_time()
        drawn = self._drawn(plain, torch.cat(hidden), draws)
        at_s = self._free_s[-1] = at_s + time.process_time() - began_s
        self._out.append((at_s, StepResult(drawn, [])))
        self._left_s = time.process_time()

    def collect(self) -> StepResult:
        self._engine_worked()
        at_s, result = self._out.popleft()
        self.now_s = max(self.now_s, at_s)
        self._left_s = time.process_time()
        return result

    def _engine_worked(self) -> None:
        self.now_s += time.process_time() - self._left_s


def timed_tokens_a_second(
    stages: Stages, tokenizer: Tokenizer, depth: int, cost: PieceCost | None, rounds: int
) -> float:
    """The best of several rounds, on the clock of ``TimedStages``."""
    best = 0.0
    for turn in range(rounds):
        runner = TimedStages(stages, depth, cost)
        engine = Engine(runner, detokenizers(tokenizer), EngineConfig(**LIMITS))
        begun_s = runner.now_s
        count = serve(engine, turn)
        best = max(best, count / (runner.now_s - begun_s))
    return best


def wall_tokens_a_second(folder: Path, depths: Sequence[int], rounds: int) -> list[float]:
    """The best of several rounds over two forked ranks each, all depths in turn."""
    engines = []
    try:
        for depth in depths:
            config = EngineConfig(**LIMITS, pp=2, pp_batches=depth, pp_slices=1)
            runner = ParallelRunner(folder, config, start=fork_ranks, num_threads=1)
            made = detokenizers(Tokenizer.from_folder(folder))
            engines.append(Engine(runner, made, config))
        best = [0.0 for _ in engines]
        for turn in range(rounds):
            for at, engine in enumerate(engines):
                began_s = time.perf_counter()
                count = serve(engine, turn)
                best[at] = max(best[at], count / (time.perf_counter() - began_s))
        return best
    finally:
        for engine in engines:
            engine.close()


def serve(engine: Engine, turn: int) -> int:
    """Answer requests that come all at once; tokens generated."""
    rng = random.Random(turn)
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_LEN, ignore_eos=True)
    for at in range(NUM_REQUESTS):
        prompt = [rng.randrange(1, 300) for _ in range(PROMPT_LEN)]
        engine.add(Job(f"{turn}-{at}", prompt, params))
    count = 0
    while engine.has_work():
        for delta in engine.step():
            assert delta.error is None, delta.error
            count += len(delta.token_ids)
    return count
