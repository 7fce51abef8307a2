"""``simulate_generation``: what becomes of a workload for models that generate."""

from collections.abc import Mapping, Sequence

from blocks._checks import check, fail
from blocks.sched.cluster_sim.generation.block_counter import BlockCounter
from blocks.sched.cluster_sim.generation.loop import GenerationLoop
from blocks.sched.cluster_sim.generation.outcome import GenerationOutcome
from blocks.sched.cluster_sim.generation.pace import Pace
from blocks.sched.cluster_sim.generation.settings import (
    Admission,
    AllocatorFactory,
    EngineSettings,
)
from blocks.sched.cluster_sim.generation.shared_cores import SharedCores
from blocks.sched.cluster_sim.settings import Event, Overheads, check_events
from blocks.sched.placement.placement import Placement
from blocks.sched.profile.profile import Profile
from blocks.sched.workload.workload import Workload


def simulate_generation(
    placement: Placement,
    profiles: Mapping[str, Profile],
    workload: Workload,
    *,
    settings: EngineSettings | None = None,
    admission: Admission | None = None,
    overheads: Overheads | None = None,
    events: Sequence[Event] = (),
    retry: bool = True,
    make_allocator: AllocatorFactory = BlockCounter,
    cores: SharedCores | None = None,
    pace: Pace | None = None,
) -> GenerationOutcome:
    """What becomes of a workload for models that generate, under one placement.

    Every model of a group has an engine there (``blocks.sched.Scheduler`` as it serves, on a
    simulated clock): continuous batching, chunked prompts, blocks of the key-value cache,
    preemption. The engines of a group take turns on its stages. A request goes to the engine that
    is predicted to give its first token soonest, of those that are predicted to keep its limits,
    and is refused where none is.

    Args:
        placement: groups with ``kv_tokens``.
        profiles: of every model, with prefill and decode times.
        workload: with lengths of at least 1; ``slo_s`` limits the first token, ``tpot_s`` the rest.
        settings: of the engines.
        admission: what is refused.
        overheads: on top of the profile's times; ``request_s`` delays every token.
        events: faults; a clock that jumps is the schedulers'.
        retry: what a stopping group had not finished is asked again elsewhere, from the start; else
            it fails.
        make_allocator: of the cache blocks of an engine, as ``blocks.kv.BlockManager``.
        cores: where devices share processor cores; then each group computes one step at a time
            (``EngineSettings(overlap=False, num_lanes=1)``).
        pace: by group and by the moment a step begins, how many times what its profile says it
            takes; for machines whose speed changes. Nobody knows it beforehand: predictions go by
            the profile, and by what the last steps took. Needs these settings too.

    Raises:
        ValueError: what does not fit together, with names.

    Reference: Yu et al., Orca, 2022; Kwon et al., PagedAttention, 2023; Duan et al., MuxServe,
    2024 (several models on one group).
    """
    if workload.num_requests:
        least = min(int(workload.prompt_len.min()), int(workload.output_len.min()))
        if least < 1:
            raise fail("lengths", "at least 1 token in and out", least, "see with_lengths")
    events = sorted(events, key=lambda event: event.at_s)
    check_events(tuple(events), len(placement.groups))
    settings = settings or EngineSettings()
    if cores is not None:
        cores.checked(placement)
    if cores is not None or pace is not None:
        check(not settings.overlap, "overlap", "False with cores or a pace", settings.overlap)
        one = settings.num_lanes == 1
        check(one, "num_lanes", "1 with cores or a pace", settings.num_lanes)
    loop = GenerationLoop(
        placement,
        profiles,
        workload,
        settings,
        admission or Admission(),
        (overheads or Overheads()).checked(),
        events,
        retry,
        make_allocator,
        cores,
        pace,
    )
    return loop.run()
