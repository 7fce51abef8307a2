"""What must hold of any outcome."""

from collections.abc import Mapping

import numpy as np

from blocks.sched.cluster_sim import Outcome, Overheads
from blocks.sched.profile import Profile


def check_stages(outcome: Outcome, profiles: Mapping[str, Profile], overheads: Overheads) -> None:
    """No last stage serves two batches at a time, batches are of sizes and models that the profile
    knows, and nobody is through quicker than alone.

    For outcomes without noise. Requests that leave a group together are a batch.
    """
    workload = outcome.workload
    for index, group in enumerate(outcome.placement.groups):
        own = np.flatnonzero(outcome.finished & (outcome.group == index))
        done_s, batch, sizes = np.unique(
            outcome.answered_s[own], return_inverse=True, return_counts=True
        )
        model = np.full(len(done_s), -1)
        model[batch] = workload.model[own]
        assert np.array_equal(model[batch], workload.model[own]), "models mixed in a batch"
        scale = 1 + overheads.per_stage * group.configuration.pp
        last_s, whole_s = np.zeros(len(done_s)), np.zeros(len(done_s))
        for one, size in set(zip(model.tolist(), sizes.tolist(), strict=True)):
            timing = profiles[workload.models[one]].timing(group.configuration)
            alike = (model == one) & (sizes == size)
            last_s[alike] = timing.stage_s(size)[-1] * scale
            whole_s[alike] = timing.latency_s(size) * scale
        gap_s = overheads.gap_of(group.configuration.pp)
        assert np.all(np.diff(done_s) >= last_s[1:] + gap_s - 1e-6), "a stage taken twice"
        latency_s = outcome.answered_s[own] - workload.arrival_s[own]
        assert np.all(latency_s >= whole_s[batch] + overheads.request_s - 1e-6)
    assert np.all(outcome.busy_s >= -1e-6)
