"""What must hold of any outcome."""

from collections.abc import Mapping

import numpy as np

from blocks.sched.cluster_sim import Outcome, Overheads
from blocks.sched.profile import Profile


def check_stages(outcome: Outcome, profiles: Mapping[str, Profile], overheads: Overheads) -> None:
    """No last stage serves two requests at a time, and nobody is through quicker than alone.

    For outcomes without batching and noise.
    """
    workload = outcome.workload
    for index, group in enumerate(outcome.placement.groups):
        own = np.flatnonzero(outcome.finished & (outcome.group == index))
        own = own[np.argsort(outcome.answered_s[own], kind="stable")]
        scale = 1 + overheads.per_stage * group.configuration.pp
        last_s, alone_s = np.zeros(len(workload.models)), np.zeros(len(workload.models))
        for at, model in enumerate(workload.models):
            if model in group.models:
                timing = profiles[model].timing(group.configuration)
                last_s[at] = timing.stage_s()[-1] * scale
                alone_s[at] = timing.latency_s() * scale
        model, done_s = workload.model[own], outcome.answered_s[own]
        gap_s = overheads.gap_of(group.configuration.pp)
        assert np.all(np.diff(done_s) >= last_s[model][1:] + gap_s - 1e-6)
        latency_s = done_s - workload.arrival_s[own]
        assert np.all(latency_s >= alone_s[model] + overheads.request_s - 1e-6)
    assert np.all(outcome.busy_s >= -1e-6)
