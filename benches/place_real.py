"""Real groups of tiny models on this machine against the same clusters simulated.

    python -m benches.place_real                # every setting, 11 minutes, on a quiet machine
    python -m benches.place_real --clock        # engines compute, on a clock of processor time
    python -m benches.place_real --only pair    # placements whose name holds the text
    python -m benches.place_real --direction    # one model a group against all models on each

Each placement's processes are started once. Right before its settings, on the same cores: the
profile of its models is timed, then what a request costs beside steps, then how much slower a core
is while the others work. A few steps are timed again before and after every setting, as processors
drift: the front door's profile goes by those before. Rates and limits are multiples of the times
measured; nothing is fitted to what is compared. The same arrivals, prompts and lengths go to the
groups and to the simulation.

Every setting is simulated twice: with the pace of the machine meanwhile, which the groups' own
steps tell (``StepPace``: seconds of steps over the profile's for the same loads, in windows), and
by the profile alone. A setting that others on the machine disturbed is played again.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import selectors
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from blocks.sched.cluster_sim import Overheads
from blocks.sched.cluster_sim.generation import (
    EngineSettings,
    GenerationOutcome,
    SharedCores,
    StepTime,
    simulate_generation,
)
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload, gamma_workload
from recipes.model import Decoder, ModelConfig, init_weights, save_model
from recipes.place.group import GroupHandle, GroupSpec, Step, fork_group, read_steps
from recipes.place.measure import (
    ClockedGroup,
    Compared,
    ContentionMeter,
    Gap,
    GroupTimer,
    Points,
    Probe,
    StepPace,
    StepTimer,
    at_pace,
    local_groups,
    measure_group_profile,
    measure_profile,
    measure_speed,
    pace,
    processor_time,
    replay,
    run_virtual,
)
from recipes.place.measure.compared import HEAD
from recipes.serve.loading import load
from tests.serve.models import tiny_tokenizer

T = TypeVar("T")
SETTINGS = EngineSettings(
    token_budget=512, max_num_seqs=32, max_model_len=320, block_size=16, overlap=False
)
LIMITS = GroupSpec(
    group="measured", token_budget=512, max_num_seqs=32, max_model_len=320, block_size=16
)
KV_TOKENS = 8192
VOCAB = 320
SIZES = {"a": (320, 8), "b": (256, 8), "c": (320, 8), "d": (256, 8)}
"""Width and layers of each model; those of one size have other weights."""
LIKE = {"c": "a", "d": "b"}
"""Whose profile holds for whom."""
PROMPT, OUTPUT = (48, 240), (2, 8)
"""Tokens of a request, drawn evenly."""
POINTS = Points(
    prefill=(1, 8, 32, 64, 65, 96, 128, 129, 160, 192, 224, 256, 320, 384, 448, 512),
    batches=(1, 2, 4, 8),
    contexts=(48, 192),
    rounds=3,
    decode_steps=3,
)
SECONDS = 14.0
"""Of traffic, a setting."""
TRIES = 3
"""How often a setting is played, at most, until others leave the machine alone meanwhile."""
REPEAT_S = 85.0
"""How long all that is played again may take, so that a run has an end."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of one setting.

    load: of what the cores could do, by profile. cv: of the gaps of each model's requests.
    ttft, tpot: limits, in mean prompt steps. skew: of popularity, 0 for even.
    """

    load: float
    cv: float
    ttft: float
    tpot: float
    skew: float = 0.0

    def __str__(self) -> str:
        return f"load {self.load:g} CV {self.cv:g} TTFT x{self.ttft:g} TPOT x{self.tpot:g}"


@dataclasses.dataclass(frozen=True)
class Place:
    """A placement and its traffic.

    hosted: a group's models, a letter each. op, pp: of every group. core_of: of every device.
    stretch: of the seconds of traffic, where requests are few.
    """

    name: str
    hosted: tuple[str, ...]
    loads: tuple[Traffic, ...]
    op: int = 1
    pp: int = 1
    core_of: tuple[int, ...] = (0, 1)
    stretch: float = 1.0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({model for models in self.hosted for model in models}))

    @property
    def placement(self) -> Placement:
        size = self.op * self.pp
        groups = []
        for at, models in enumerate(self.hosted):
            devices = tuple(range(at * size, at * size + size))
            rooms = (KV_TOKENS,) * len(models)
            groups.append(Group(devices, Configuration(self.op, self.pp), tuple(models), rooms))
        return Placement(tuple(groups))


PLACES = (
    Place(
        "pair apart",
        ("a", "b"),
        (
            Traffic(0.5, 1, 5, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.7, 3, 8, 2.5),
        ),
    ),
    Place(
        "pair shared",
        ("ab", "ab"),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 3, 6, 2.0),
            Traffic(0.8, 2, 8, 2.5),
            Traffic(1.0, 1, 8, 2.5),
        ),
    ),
    Place(
        "three of four each",
        ("abc", "bcd"),
        (
            Traffic(0.5, 2, 3, 2.0),
            Traffic(0.7, 1, 4, 2.0),
            Traffic(0.8, 3, 10, 3.0, 0.5),
        ),
    ),
    Place(
        "two ranks a layer",
        ("ab",),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.8, 3, 10, 3.0),
        ),
        op=2,
        stretch=1.5,
    ),
    Place(
        "two stages",
        ("ab",),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.8, 3, 10, 3.0),
        ),
        pp=2,
    ),
    Place(
        "four apart on two cores",
        ("a", "b", "c", "d"),
        (
            Traffic(0.3, 1, 6, 3.0),
            Traffic(0.5, 2, 8, 3.0),
            Traffic(0.6, 3, 12, 4.0),
        ),
        core_of=(0, 1, 0, 1),
    ),
    Place(
        "four shared on two cores",
        ("ab", "cd", "ab", "cd"),
        (
            Traffic(0.4, 2, 6, 3.0),
            Traffic(0.6, 1, 6, 3.0),
            Traffic(0.8, 2, 10, 4.0),
        ),
        core_of=(0, 1, 1, 0),
    ),
    Place(
        "three on two cores",
        ("ab", "ab", "c"),
        (
            Traffic(0.5, 2, 6, 2.5),
            Traffic(0.7, 2, 8, 3.0),
        ),
        core_of=(0, 1, 0),
    ),
)


@contextlib.contextmanager
def saved_models() -> Iterator[dict[str, Path]]:
    """Folders of the models, random weights."""
    with tempfile.TemporaryDirectory(prefix="blocks-real-") as root:
        folders = {}
        for seed, (name, (width, layers)) in enumerate(SIZES.items()):
            config = ModelConfig(
                family="llama",
                vocab_size=VOCAB,
                hidden_size=width,
                intermediate_size=3 * width,
                num_layers=layers,
                num_heads=4,
                num_kv_heads=2,
                head_dim=width // 4,
                max_positions=SETTINGS.max_model_len,
                eos_token_ids=(0,),
                dtype="float32",
            )
            decoder = Decoder(config)
            init_weights(decoder, torch.Generator().manual_seed(seed), std=0.1)
            folders[name] = Path(root) / name
            save_model(decoder, folders[name], tiny_tokenizer())
        yield folders


def workload_of(
    place: Place, load: Traffic, profiles: Mapping[str, Profile], seed: int, seconds: float
) -> Workload:
    """Traffic by what the profile says that the cores can do."""
    mean_prompt, mean_output = sum(PROMPT) / 2, sum(OUTPUT) / 2
    names = place.models
    shares = np.array([(at + 1.0) ** -load.skew for at in range(len(names))])
    shares /= shares.sum()
    prompt_s, request_s = 0.0, 0.0
    for name, share in zip(names, shares, strict=True):
        timing = profiles[name].timing((place.op, place.pp))
        alone_s = sum(timing.prefill_s(mean_prompt))
        prompt_s += share * alone_s
        later_s = sum(timing.decode_s(2, mean_prompt)) / 2
        request_s += share * (alone_s + (mean_output - 1) * later_s)
    num_cores = len(set(place.core_of)) // (place.op * place.pp)
    rate = load.load * num_cores / request_s
    rng = np.random.default_rng(seed)
    made = gamma_workload(rate * shares, load.cv, place.stretch * seconds, rng, names)
    count = made.num_requests
    prompts = rng.integers(PROMPT[0], PROMPT[1] + 1, count)
    outputs = rng.integers(OUTPUT[0], OUTPUT[1] + 1, count)
    made = made.with_lengths(prompts, outputs)
    return made.with_slo(load.ttft * prompt_s, load.tpot * prompt_s)


def make_urgent() -> None:
    """This process, front door and clients in one, comes before the groups that share its cores;
    as it would have cores of its own elsewhere. Groups are started before."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def on_exact_timers(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, on a loop whose timers are not rounded to milliseconds."""

    def loop() -> asyncio.SelectorEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(coroutine)
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def say(text: str) -> None:
    print(text, flush=True)


BESIDE_S = 4.0
"""About what a setting takes beside its traffic."""


class Spare:
    """Seconds for what is played again."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._left_s = seconds

    def take(self, seconds: float) -> bool:
        """Whether there are so many left, which are gone then."""
        if seconds > self._left_s:
            return False
        self._left_s -= seconds
        return True


async def profiles_of(
    place: Place, folders: Mapping[str, Path], handles: Sequence[GroupHandle]
) -> tuple[dict[str, Profile], Overheads]:
    """One timing for each size, on the groups that host it; names get their size's."""
    found: dict[str, Profile] = {}
    ways: list[float] = []
    for model in place.models:
        if model in LIKE:
            found[model] = found[LIKE[model]].renamed(model)
            continue
        ports = [
            handle for handle, models in zip(handles, place.hosted, strict=True) if model in models
        ]
        found[model], way_s = await measure_group_profile(
            folders[model], model, (place.op, place.pp), ports, LIMITS, points=POINTS
        )
        ways.append(way_s)
    return found, Overheads(request_s=sum(ways) / len(ways))


def pace_of(
    place: Place, steps: Sequence[Sequence[Step]], profiles: Mapping[str, Profile], zero_s: float
) -> StepPace:
    """Of the groups while a setting was played."""
    known = [
        {model: StepTime(profiles[model].timing(group.configuration)) for model in group.models}
        for group in place.placement.groups
    ]
    return StepPace.of(steps, known, zero_s)


async def play(
    place: Place,
    folders: Mapping[str, Path],
    seconds: float,
    given: Sequence[Workload] = (),
    spare: Spare | None = None,
) -> list[Compared]:
    """Every setting of a placement on real groups, and simulated.

    Args:
        given: workloads of the settings, instead of those by this placement's own profile.
        spare: seconds for settings that were disturbed; None plays nothing again.
    """
    cores = sorted(os.sched_getaffinity(0))
    core_of = [cores[core % len(cores)] for core in place.core_of]
    placement = place.placement
    with tempfile.TemporaryDirectory(prefix="blocks-steps-") as root:
        logs = [Path(root) / f"{at}" for at in range(len(placement.groups))]
        async with local_groups(
            placement, folders, LIMITS, core_of=core_of, start=fork_group, step_logs=logs
        ) as handles:
            make_urgent()
            return await _played(place, folders, seconds, given, spare or Spare(), handles, logs)


async def _played(
    place: Place,
    folders: Mapping[str, Path],
    seconds: float,
    given: Sequence[Workload],
    spare: Spare,
    handles: Sequence[GroupHandle],
    logs: Sequence[Path],
) -> list[Compared]:
    """On groups that are there."""
    profiles, overheads = await profiles_of(place, folders, handles)
    timers = {
        model: [
            GroupTimer(handle, model, VOCAB, f"paced-{model}-{at}")
            for at, (handle, models) in enumerate(zip(handles, place.hosted, strict=True))
            if model in models
        ]
        for model in place.models
    }
    probes = [
        Probe(handle, models[0]) for handle, models in zip(handles, place.hosted, strict=True)
    ]
    speed, shared = (1.0,), None
    if len(probes) > 1:  # else a step has all cores, and its times say so
        apart = [probes[place.core_of.index(core)] for core in sorted(set(place.core_of))]
        speed = await measure_speed(apart)
        shared = SharedCores(place.core_of, speed)
    say(
        f"# {place.name}: request {overheads.request_s * 1e3:.2f} ms, speed "
        f"{', '.join(f'{one:.2f}' for one in speed)}"
    )
    found = []
    for at, traffic in enumerate(place.loads):
        workload = given[at] if given else workload_of(place, traffic, profiles, at, seconds)
        name = f"{place.name}, {traffic}"

        async def compared(name: str, workload: Workload, seed: int) -> tuple[Compared, str]:
            return await _compared(
                name,
                place,
                workload,
                profiles,
                overheads,
                shared,
                handles,
                timers,
                logs,
                seed,
            )

        one, told = await compared(name, workload, at)
        for turn in range(1, TRIES):
            if one.is_undisturbed or not spare.take(place.stretch * seconds + BESIDE_S):
                break
            say(f"  disturbed, once more: {one.line()}")
            one, told = await compared(name, workload, at + 100 * turn)
        found.append(one)
        say(f"{one.line()}, {told}{'' if one.is_undisturbed else ', does not count'}")
    return found


async def _compared(
    name: str,
    place: Place,
    workload: Workload,
    profiles: Mapping[str, Profile],
    overheads: Overheads,
    shared: SharedCores | None,
    handles: Sequence[GroupHandle],
    timers: Mapping[str, Sequence[GroupTimer]],
    logs: Sequence[Path],
    seed: int,
) -> tuple[Compared, str]:
    """A setting, played once and simulated twice; and what the machine's pace was."""
    placement, layout = place.placement, (place.op, place.pp)
    before = await pace(timers, profiles, layout)
    known, zero_s = at_pace(profiles, before), [0.0]
    meter = ContentionMeter()
    real = await replay(
        workload,
        placement,
        handles,
        known,
        settings=SETTINGS,
        overheads=overheads,
        vocab_size=VOCAB,
        seed=seed,
        begun=lambda at_s: zero_s.insert(0, at_s),
    )
    contention = meter.read()
    await asyncio.sleep(0.05)  # the last steps are written down
    own = pace_of(place, [read_steps(log) for log in logs], known, zero_s[0])
    after = await pace(timers, profiles, layout)
    # the groups' own steps hold what shared cores cost: it is not counted again
    simulated = simulate_generation(
        placement, known, workload, settings=SETTINGS, overheads=overheads, pace=own
    )
    mean = at_pace(profiles, (before + after) / 2)
    by_profile = simulate_generation(
        placement, mean, workload, settings=SETTINGS, overheads=overheads, cores=shared
    )
    told = f"pace {before:.3f} {after:.3f}, of its steps {own.spread[0]:.2f}-{own.spread[1]:.2f}"
    return Compared(name, real, simulated, contention, by_profile), told


def play_clocked(
    place: Place,
    folders: Mapping[str, Path],
    seconds: float,
    given: Sequence[Workload] = (),
    known: dict[str, Profile] | None = None,
) -> list[Compared]:
    """The same on a clock of processor time, a device for each group.

    Args:
        known: profiles that were timed before; new ones are added.
    """
    placement = place.placement
    profiles = {} if known is None else known
    for model in place.models:
        like = LIKE.get(model, model)
        if like not in profiles:
            profiles[like] = measure_profile(
                folders[like], points=POINTS, limits=LIMITS, clock=time.process_time
            )
        profiles[model] = profiles[like].renamed(model)
    config = LIMITS.engine_config(64 << 20, SETTINGS.max_model_len)
    engines = [
        {model: load(folders[model], config).engine for model in group.models}
        for group in placement.groups
    ]
    timers = {
        model: [
            StepTimer(hosted[model], time.process_time) for hosted in engines if model in hosted
        ]
        for model in place.models
    }

    async def played(
        workload: Workload, seed: int, known: Mapping[str, Profile]
    ) -> tuple[GenerationOutcome, StepPace]:
        groups, zero_s = [ClockedGroup(hosted, processor_time) for hosted in engines], [0.0]
        outcome = await replay(
            workload,
            placement,
            groups,
            known,
            settings=SETTINGS,
            vocab_size=VOCAB,
            seed=seed,
            begun=lambda at_s: zero_s.insert(0, at_s),
        )
        return outcome, pace_of(place, [group.steps for group in groups], known, zero_s[0])

    found = []
    for at, traffic in enumerate(place.loads):
        workload = given[at] if given else workload_of(place, traffic, profiles, at, seconds)

        before = asyncio.run(pace(timers, profiles, (1, 1)))
        known = at_pace(profiles, before)
        real, own = run_virtual(played(workload, at, known))
        after = asyncio.run(pace(timers, profiles, (1, 1)))
        simulated = simulate_generation(placement, known, workload, settings=SETTINGS, pace=own)
        mean = at_pace(profiles, (before + after) / 2)
        by_profile = simulate_generation(placement, mean, workload, settings=SETTINGS)
        found.append(Compared(f"{place.name}, {traffic}", real, simulated, None, by_profile))
        spread = f"{own.spread[0]:.2f}-{own.spread[1]:.2f}"
        say(f"{found[-1].line()}, pace {before:.3f} {after:.3f}, of its steps {spread}")
    return found


def run(
    only: str = "",
    clock: bool = False,
    seconds: float = SECONDS,
    repeat_s: float = REPEAT_S,
) -> list[Compared]:
    """Play the placements whose names hold ``only``."""
    torch.set_num_threads(1)
    found: list[Compared] = []
    known: dict[str, Profile] = {}
    begun_s, spare = time.monotonic(), Spare(repeat_s)
    say(HEAD)
    with saved_models() as folders:
        for place in PLACES:
            if only not in place.name:
                continue
            if clock:
                if place.op * place.pp == 1:
                    found += play_clocked(place, folders, seconds, known=known)
            else:
                found += on_exact_timers(play(place, folders, seconds, (), spare))
            say(f"  {time.monotonic() - begun_s:.0f} s so far")
    return found


BURSTY = (
    Traffic(0.2, 4, 10, 3.0, 1.0),
    Traffic(0.35, 4, 10, 3.0, 1.0),
    Traffic(0.5, 4, 10, 3.0, 1.0),
)
APART = Place("one model a group", ("a", "b"), BURSTY)
TOGETHER = Place("all models on every group", ("ab", "ab"), BURSTY)


def direction(
    clock: bool = False, seconds: float = SECONDS
) -> tuple[list[Compared], list[Compared]]:
    """One bursty mixed workload after another, on two devices: one model a group, and both on
    every group."""
    torch.set_num_threads(1)
    say(HEAD)
    with saved_models() as folders:

        def played(place: Place, given: Sequence[Workload] = ()) -> list[Compared]:
            if clock:
                return play_clocked(place, folders, seconds, given)
            return on_exact_timers(play(place, folders, seconds, given))

        apart = played(APART)
        return apart, played(TOGETHER, [one.real.workload for one in apart])


def direction_summary(apart: Sequence[Compared], together: Sequence[Compared]) -> str:
    """Attainments of both, really and simulated, by load."""
    told = []
    for traffic, one, other in zip(BURSTY, apart, together, strict=True):
        told.append(
            f"load {traffic.load:g}: {other.real.attainment:.1%} against "
            f"{one.real.attainment:.1%} (simulated {other.simulated.attainment:.1%} against "
            f"{one.simulated.attainment:.1%})"
        )
    return "; ".join(told)


def counted(found: Sequence[Compared]) -> list[Compared]:
    """Those that others did not disturb."""
    return [one for one in found if one.is_undisturbed]


def summary(found: Sequence[Compared], by_profile: bool = False) -> str:
    """How far simulated attainments are from real ones, over what others did not disturb.

    Args:
        by_profile: simulated by the profile alone, instead of with the groups' own pace.
    """
    kept = counted(found)
    undisturbed = f"{len(kept)} of {len(found)} settings undisturbed"
    if not kept:
        return undisturbed
    gap = Gap.between([one.profile_points if by_profile else one.points for one in kept])
    spread = sorted(one.real.attainment for one in kept)
    text = (
        f"{undisturbed}, attainment {spread[0]:.0%} to {spread[-1]:.0%}: simulated "
        f"{gap.mean:.1f} points off on average, {gap.worst:.1f} at worst, bias {gap.bias:+.1f}"
    )
    taken = [one.contention.others for one in kept if one.contention is not None]
    if taken:
        text += f"; others had at most {max(taken):.1%} of the cores"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of traffic, a setting")
    parser.add_argument(
        "--repeat-s",
        type=float,
        default=REPEAT_S,
        help="how long all that is played again, for others disturbed it, may take",
    )
    parser.add_argument("--direction", action="store_true", help="groups apart against shared")
    asked = parser.parse_args()
    if asked.direction:
        say(direction_summary(*direction(asked.clock, asked.seconds)))
    else:
        found = run(asked.only, asked.clock, asked.seconds, asked.repeat_s)
        say(f"with the pace of the machine meanwhile: {summary(found)}")
        say(f"by the profile alone: {summary(found, by_profile=True)}")


if __name__ == "__main__":
    main()
