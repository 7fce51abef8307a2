"""A group of two stages that computes, with one batch in flight and with two, real and simulated.

    python -m benches.place_stages

Engine, scheduler, turns and router are the service's; every stage computes in this process and
counts for its processor time on a clock of its own, so neighbours on the machine count little.
"""

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benches.no_options import no_options
from benches.stage_pieces import BLOCK, Stages
from benches.stage_runner import StageRunner
from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    GenerationOutcome,
    StepTime,
    simulate_generation,
)
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload, gamma_workload
from recipes.model import Decoder, ModelConfig, init_weights, save_model
from recipes.model.tokenizer import Tokenizer
from recipes.place.group import GroupSpec, Step
from recipes.place.measure import Points, StepTimer, replay, run_virtual
from recipes.place.measure.clocked_pipeline import ClockedPipeline
from recipes.place.measure.measured_timing import measured, timing_of
from recipes.serve import Engine
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import StepResult
from recipes.serve.outputs import Delta
from recipes.serve.parallel import Layout
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw
from tests.serve.models import tiny_tokenizer

PP = Configuration(1, 2)
MODEL = ModelConfig(
    "llama", vocab_size=320, hidden_size=256, intermediate_size=1024, num_layers=8, num_heads=4,
    num_kv_heads=2, head_dim=64, max_positions=320, eos_token_ids=(0,),
)  # fmt: skip
LIMITS = GroupSpec(
    group="stages", pp=2, devices=(0, 1), token_budget=256, max_num_seqs=64, block_size=BLOCK,
    max_model_len=320, pp_batches=1,
)  # fmt: skip
KV_TOKENS = 64 * (320 + BLOCK)
SETTINGS = {
    depth: EngineSettings(
        token_budget=256, max_num_seqs=64, max_model_len=320, block_size=BLOCK, num_lanes=depth,
        overlap=False,
    )
    for depth in (1, 2)
}  # fmt: skip
POINTS = Points(
    prefill=(1, 16, 32, 64, 128, 256),
    batches=(1, 2, 4, 8, 16, 32, 64),
    contexts=(24, 64),
    rounds=2,
    decode_steps=3,
)
CROWD, PROMPT_LEN, OUTPUT_LEN = 64, 32, 20
LOADS, NUM_REQUESTS = (0.3, 0.45, 0.6), 120
"""Of what the stages could do one step at a time; requests of each."""
OPEN = Admission(ttft=False, tpot=False)


class StagesHere(StageRunner[StepResult]):
    """Computes whole steps.

    stage_s: processor seconds of the last batch in every stage.
    """

    stage_s: tuple[float, ...] = ()

    @torch.inference_mode()
    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        assert not prompts, "prompts are not scored here"
        copies, plain = self._manager.take_copies(), self._tensors.plain(batch)
        hidden, stage_s = self._computed(plain, copies)
        began_s = time.process_time()
        drawn = self._drawn(plain, hidden, draws)
        stage_s[-1] += time.process_time() - began_s
        self.stage_s = tuple(stage_s)
        self._out.append(StepResult(drawn, []))

    def collect(self) -> StepResult:
        return self._out.popleft()


class Half:
    """Half a step counts in its stages for what they computed, and for the rest in the group.

    work_s: of all of them.
    """

    def __init__(self) -> None:
        self.work_s = 0.0

    def __call__(
        self, engine: Engine, run: Callable[[], list[Delta]]
    ) -> tuple[list[Delta], float, tuple[float, ...]]:
        assert isinstance(engine.runner, StagesHere)
        engine.runner.stage_s = ()
        began_s = time.process_time()
        deltas = run()
        seconds = time.process_time() - began_s
        self.work_s += seconds
        return deltas, max(0.0, seconds - sum(engine.runner.stage_s)), engine.runner.stage_s


class Rates(NamedTuple):
    """Tokens a second by batches in flight (1, 2)."""

    real: tuple[float, float]
    simulated: tuple[float, float]

    @property
    def gains(self) -> tuple[float, float]:
        """Real and simulated."""
        return self.real[1] / self.real[0], self.simulated[1] / self.simulated[0]


class TwoStages:
    """The group, its profile, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        decoder = Decoder(MODEL)
        init_weights(decoder, torch.Generator().manual_seed(0), std=0.3)
        save_model(decoder, folder, tiny_tokenizer())
        self._stages = Stages(folder, Layout(pp=2).layers(MODEL), KV_TOKENS)
        self._tokenizer = Tokenizer.from_folder(folder)
        rooms = ((self._stages.caches[0].num_blocks - 1) * BLOCK,)
        self.placement = Placement((Group((0, 1), PP, ("m",), rooms),))

    def profile(self) -> Profile:
        """Lone steps timed here and now, as ``measure_profile`` does."""
        timer = StepTimer(self._engine(1), time.process_time)
        seconds: dict[tuple[int, int], list[float]] = {}
        for turn in range(-1, POINTS.rounds):
            for tokens in POINTS.prefill:
                seconds.setdefault((tokens, 0), [])
                seconds[tokens, 0] += [timer.prefill_s(tokens)] if turn >= 0 else []
            for batch, context in POINTS.decodes():
                taken = timer.decode_s(batch, context, POINTS.decode_steps)
                seconds.setdefault((batch, context), [])
                seconds[batch, context] += taken if turn >= 0 else []
        found = {point: statistics.median(taken) for point, taken in seconds.items() if taken}
        return measured("m", LIMITS, [timing_of(MODEL, LIMITS, PP, POINTS, found)], "lone steps")

    def play(
        self, workload: Workload, known: Profile, depth: int
    ) -> tuple[GenerationOutcome, GenerationOutcome]:
        """Real, and simulated at the pace of the machine meanwhile: what all steps took, over what
        the profile says of their loads."""
        half = Half()

        async def played() -> tuple[GenerationOutcome, list[Step]]:
            port = ClockedPipeline({"m": self._engine(depth)}, half)
            outcome = await replay(
                workload, self.placement, [port], {"m": known}, settings=SETTINGS[depth],
                admission=OPEN, vocab_size=MODEL.vocab_size, seed=random.randrange(1 << 30),
            )  # fmt: skip
            return outcome, port.steps

        real, steps = run_virtual(played())
        step_time = StepTime(known.timing(PP))
        pace = half.work_s / sum(sum(step_time(step.load)) for step in steps)
        paced = known.scaled("m", time=pace, why="the pace meanwhile")
        simulated = simulate_generation(
            self.placement, {"m": paced}, workload, settings=SETTINGS[depth], admission=OPEN
        )
        return real, simulated

    def rates(self, known: Profile, rounds: int = 3) -> Rates:
        """A crowd that comes at once; the best of several rounds, depths in turn."""
        crowd = Workload.of(["m"], [0.0] * CROWD, prompt_len=PROMPT_LEN, output_len=OUTPUT_LEN)
        best = dict.fromkeys((1, 2), (0.0, 0.0))
        for _ in range(rounds):
            for depth in best:
                real, simulated = (
                    CROWD * OUTPUT_LEN / float(one.answered_s.max())
                    for one in self.play(crowd, known, depth)
                )
                best[depth] = max(best[depth], (real, simulated))
        return Rates((best[1][0], best[2][0]), (best[1][1], best[2][1]))

    def traffic(self, known: Profile, load: float, seed: int) -> Workload:
        """Gamma arrivals (CV 2), limits that some requests miss."""
        timing = known.timing(PP)
        prompt_s = sum(timing.prefill_s(PROMPT_LEN))
        token_s = sum(timing.decode_s(8, 48)) / 8
        rate = load / (prompt_s + (OUTPUT_LEN - 1) * token_s)
        rng = np.random.default_rng(seed)
        made = gamma_workload([rate], 2.0, NUM_REQUESTS / rate, rng, ["m"])
        count = made.num_requests
        made = made.with_lengths(rng.integers(8, 57, count), rng.integers(8, 33, count))
        return made.with_slo(6 * prompt_s, 1.5 * sum(timing.decode_s(8, 48)))

    def _engine(self, depth: int) -> Engine:
        runner = StagesHere(self._stages, depth)
        config = dataclasses.replace(LIMITS.engine_config(1 << 20), pp=1, pp_batches=None)
        return Engine(runner, detokenizers(self._tokenizer), config)


class Attained(NamedTuple):
    """Attainment with so many batches in flight at a load."""

    depth: int
    load: float
    real: float
    simulated: float

    def __str__(self) -> str:
        return f"{self.real:.1%} (simulated {self.simulated:.1%})"


def attained(stages: TwoStages, known: Profile) -> list[Attained]:
    """The same traffic at every load, with one batch in flight and with two."""
    found = []
    for seed, load in enumerate(LOADS):
        workload = stages.traffic(known, load, seed)
        for depth in (1, 2):
            real, simulated = stages.play(workload, known, depth)
            found.append(Attained(depth, load, real.attainment, simulated.attainment))
    return found


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stages = TwoStages(Path(folder))
        began_s = time.process_time()
        known = stages.profile()
        rates = stages.rates(known)
        print(f"tokens/s real {rates.real}, simulated {rates.simulated}, gains {rates.gains}")
        print(f"{time.process_time() - began_s:.1f} s of processor time", flush=True)
        for one in attained(stages, known):
            print(f"{one.depth} in flight, load {one.load:g}: {one}")
        print(f"{time.process_time() - began_s:.1f} s of processor time")


if __name__ == "__main__":
    no_options(__doc__)
    main()
