"""Figures of groups with stages: a batch a stage in flight, real and simulated."""

import functools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benches.figures.row import Measured, Row
from benches.generation_stages import NUM_DEVICES, RATE, placed, traffic
from benches.place_stages import CROWD, OUTPUT_LEN, PROMPT_LEN, TwoStages, attained
from blocks.sched.profile import Profile

COMMAND = "python -m benches.place_stages"
WHAT = (
    "one group of two stages (width 256, 8 layers), real engine, stages, turns and router, from "
    "their processor time, a processor each"
)


def rows() -> Iterator[Row]:
    yield Row(
        f"tokens a second of {WHAT}: two batches in flight over one, {CROWD} requests of "
        f"{PROMPT_LEN} + {OUTPUT_LEN} tokens at once; the same simulated, from lone steps timed "
        "right before",
        ">= 1.5 x, simulated within 5 %",
        COMMAND,
        _rates,
    )
    yield Row(
        f"SLO attainment (TTFT and TPOT) by load of {WHAT}, two batches in flight and one, against "
        "the same arrivals simulated at the mean pace of the steps meanwhile",
        "",
        COMMAND,
        _attained,
    )
    yield Row(
        f"a 13B on {NUM_DEVICES} simulated devices of 24 GB, links of 2.5 GB/s (a roofline), "
        f"{RATE:g} requests/s (CV 2): placement found with a batch a stage in flight against one",
        "better, by stages",
        "python -m benches.generation_stages",
        _placed,
    )


@functools.cache
def _group() -> tuple[TwoStages, Profile]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stages = TwoStages(Path(folder))
    return stages, stages.profile()


def _rates() -> Measured:
    stages, known = _group()
    rates = stages.rates(known)
    real, simulated = rates.gains
    text = f"{real:.2f} x ({rates.real[1]:.0f} tokens/s); simulated {simulated:.2f} x"
    return Measured(text, real >= 1.5 and abs(simulated / real - 1) <= 0.05)


def _placed() -> Measured:
    asked = traffic()
    one, several = placed(1, asked), placed(None, asked)
    texts = [
        f"{plan.attainment:.1%} ({len(plan.placement.groups)} groups of "
        f"{' and '.join(sorted({str(g.configuration) for g in plan.placement.groups}))})"
        for plan in (several, one)
    ]
    staged = any(group.configuration.pp > 1 for group in several.placement.groups)
    text = f"simulated: {texts[0]} against {texts[1]}"
    return Measured(text, staged and several.attainment > one.attainment)


def _attained() -> Measured:
    found = attained(*_group())
    pairs = zip(found[::2], found[1::2], strict=True)
    texts = [f"load {two.load:g}: two {two}, one {one}" for one, two in pairs]
    off = [100 * abs(one.simulated - one.real) for one in found]
    text = f"{statistics.mean(off):.1f} points off on average, {max(off):.1f} at worst: "
    return Measured(text + "; ".join(texts), None)
