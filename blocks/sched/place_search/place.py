"""Placement of many models on one cluster: Algorithm 2 and what goes beyond it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from blocks._checks import check, check_count
from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search.bound import attainment_bound
from blocks.sched.place_search.bucket_search import BucketSearch
from blocks.sched.place_search.buckets import THRESHOLD, Buckets, bucketings, latency_classes
from blocks.sched.place_search.found import Found
from blocks.sched.place_search.local_search import improve
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.placement_plan import PlacementPlan
from blocks.sched.place_search.shake import shake
from blocks.sched.place_search.shapes import MAX_OP, MAX_PP, configurations_of, mixed_shapes
from blocks.sched.place_search.simulator import Settings, Simulator
from blocks.sched.place_search.split_search import over_splits
from blocks.sched.place_search.trial import Evaluator, Trial
from blocks.sched.place_search.useful import alone_s, useful_configurations
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload

SELECTIVE = "selective replication"
MIXED = "mixed shapes"
LOCAL = "local search"


def place(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    *,
    simulator: Simulator | None = None,
    settings: Settings = MappingProxyType({}),
    configurations: Collection[Configuration] | None = None,
    kv_tokens: Mapping[str, int] | None = None,
    bucket_threshold: float | int | None = THRESHOLD,
    beam: int = 3,
    beam_simulations: int = 400,
    local_simulations: int = 300,
    max_splits: int = 100,
    max_shapes: int = 60,
    tell: Callable[[str], None] = lambda line: None,
) -> PlacementPlan:
    """The best placement found for a workload by simulating it.

    Models are put into buckets by latency, devices are split over buckets, the devices of a bucket
    are cut into groups of one configuration, and replicas are selected by ``greedy_selection`` or,
    where that is cheap, ``beam_selection``; selective replication (groups of one device) is always
    among what is tried, and on few devices groups of mixed configurations. A local search over the
    best mixes configurations further. Deterministic.

    Args:
        workload: its models' names are looked up in ``profiles``.
        memory_bytes: what one device may hold.
        simulator: of this workload; ``ClusterSim(profiles, workload, **settings)`` if None.
        settings: of ``ClusterSim``: dispatch, batching, overheads, ...
        configurations: of groups; all of the profiles with pp <= 8 and op <= 4 if None.
        kv_tokens: least room of each generating model, see ``Memory``.
        bucket_threshold: relative difference of latencies that may part models; None for one
            bucket.
        beam: width of the beam.
        beam_simulations: a beam that takes more than about so many is not run.
        local_simulations: of small changes, for each of the best ``FINALISTS``, and of large ones
            for the best that came of them.
        max_splits: device splits of a bucketing that are considered.
        max_shapes: where the devices can be cut into groups in at most so many ways, configurations
            mixed, each is tried for all models together.
        tell: is called with lines of progress.

    Reference: Li et al., 2023, AlpaServe, section 4.2, algorithms 1 and 2.
    """
    check_count("num_devices", num_devices)
    check_count("beam", beam)
    check_count("max_splits", max_splits)
    limits = {"beam_simulations": beam_simulations, "local_simulations": local_simulations}
    for name, limit in limits.items():
        check_count(name, limit, least=0)
    models = workload.models
    missing = [model for model in models if model not in profiles]
    check(not missing, "profiles", "one for each model of the workload", f"none of {missing[:3]}")
    if configurations is None:
        configurations = configurations_of(profiles, models, max_pp=MAX_PP, max_op=MAX_OP)
    wanted = "at least one, or None for all of the profiles"
    check(bool(configurations), "configurations", wanted, "none")
    chosen = [one for one in sorted(configurations) if one.num_devices <= num_devices]
    memory = Memory(profiles, memory_bytes, kv_tokens)
    evaluate = Evaluator(simulator or ClusterSim(profiles, workload, **settings), workload, memory)
    useful = useful_configurations(workload, profiles)
    search = BucketSearch(
        evaluate, memory, chosen, useful, beam_simulations=beam_simulations, width=beam, tell=tell
    )
    classes = _classes(workload, profiles, bucket_threshold)
    found = _cut_up(search, models, classes, num_devices, max_splits, max_shapes)
    found.add(LOCAL, _changed(search, found.finalists(), models, num_devices, local_simulations))
    tops = found.tops()
    best = max(tops, key=lambda way: tops[way].score)
    bound = 1.0
    if getattr(settings.get("noise"), "size", 0) == 0:  # times that are drawn may be shorter
        cluster = (num_devices, memory_bytes, chosen)
        batching = _batches(simulator, settings)
        bound = attainment_bound(workload, profiles, *cluster, batching=batching).attainment
    return PlacementPlan(
        memory.with_rooms(tops[best].placement),
        tops[best].score.attainment,
        bound,
        evaluate.simulated,
        best,
        {way: trial.score.attainment for way, trial in tops.items()},
    )


def _cut_up(
    search: BucketSearch,
    models: Sequence[str],
    classes: Buckets,
    num_devices: int,
    max_splits: int,
    max_shapes: int,
) -> Found:
    """Algorithm 1 on groups of every kind: of one device, of one configuration a bucket, mixed."""
    found = Found()
    single = tuple(one for one in search.configurations if one == (1, 1))
    found.add(SELECTIVE, [search.select(single * num_devices, models)])
    for buckets in bucketings(classes):
        if len(buckets) <= num_devices:
            way = "one bucket" if len(buckets) == 1 else f"{len(buckets)} buckets"
            found.add(way, over_splits(search, buckets, num_devices, max_splits))
    mixed = mixed_shapes(num_devices, search.configurations, max_shapes)
    found.add(MIXED, [search.select(shapes, models) for shapes in mixed])
    return found


def _changed(
    search: BucketSearch,
    finalists: Sequence[Trial],
    models: Sequence[str],
    num_devices: int,
    simulations: int,
) -> list[Trial]:
    """Small changes of each finalist, then large ones of the best that came of them."""

    def changed(change: Callable[..., Trial], trial: Trial) -> Trial:
        where = (models, search.configurations, num_devices)
        asked = {"simulations": simulations, "useful": search.useful}
        return change(search.evaluate, search.memory, trial, *where, **asked)

    better = [changed(improve, trial) for trial in finalists]
    best = sorted(better, key=lambda one: one.score)[-1]
    return [*better, changed(shake, best)]


def _batches(simulator: Simulator | None, settings: Settings) -> bool:
    """Whether requests may share a pass; of a simulator that does not say, they may."""
    if simulator is None:
        return bool(settings.get("batching", False))
    return bool(getattr(simulator, "batching", True))


def _classes(
    workload: Workload, profiles: Mapping[str, Profile], threshold: float | int | None
) -> Buckets:
    if threshold is None:
        return (workload.models,)
    return latency_classes({m: alone_s(profiles[m]) for m in workload.models}, threshold)
