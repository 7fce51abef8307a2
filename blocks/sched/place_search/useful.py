"""Which configurations are quick enough for a model, and how long one request of it takes."""

from collections.abc import Mapping

from blocks.sched.place_search.greedy import Useful
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload


def useful_configurations(workload: Workload, profiles: Mapping[str, Profile]) -> Useful:
    """Whether a configuration is quick enough for at least one request of a model.

    Where a model generates, any configuration is taken to be.
    """
    longest = dict.fromkeys(workload.models, 0.0)
    for index, model in enumerate(workload.models):
        limits = workload.slo_s[workload.model == index]
        longest[model] = float(limits.max()) if len(limits) else float("inf")
    known: dict[tuple[str, Configuration], bool] = {}

    def useful(model: str, configuration: Configuration) -> bool:
        key = (model, configuration)
        if key not in known:
            timing = profiles[model].find(configuration)
            alone = timing is not None and (
                not timing.batches or timing.latency_s(timing.batch_sizes[0]) <= longest[model]
            )
            known[key] = alone
        return known[key]

    return useful


def alone_s(profile: Profile) -> float:
    """Seconds of one request in the smallest configuration; of a prompt of 512 tokens where the
    model generates."""
    timing = min(
        profile.timings, key=lambda one: (one.configuration.num_devices, one.configuration)
    )
    if timing.batches:
        return timing.latency_s(timing.batch_sizes[0])
    return sum(timing.prefill_s(512))
