"""``Change``: the traffic of a config, but more of it, burstier, or with other limits."""

import dataclasses
from typing import NamedTuple

import numpy as np

from blocks._checks import check_positive
from blocks.sched.workload import Workload, refit
from recipes.place.config import PlaceConfig
from recipes.place.traffic import workload_of


class Change(NamedTuple):
    """Factors on what a config says; 1 changes nothing.

    rate: requests a second. cv: coefficient of variation of the gaps. slo: time limits.
    draw: which draw of the traffic; 0 is the one that placements are searched for on.
    """

    rate: float = 1.0
    cv: float = 1.0
    slo: float = 1.0
    draw: int = 0


def workload_at(config: PlaceConfig, change: Change) -> Workload:
    """The traffic after a change.

    A trace is compressed in time for other rates, and drawn anew from Gamma processes fitted to its
    minutes for other CVs and draws.
    """
    for name, factor in zip(change._fields[:3], change[:3], strict=True):
        check_positive(name, factor)
    traffic = config.traffic
    more = dataclasses.replace(traffic, scale=traffic.scale * change.rate)
    models = config.models
    if traffic.trace is None:
        more = dataclasses.replace(more, cv=traffic.cv * change.cv, seed=traffic.seed + change.draw)
        models = tuple(
            model if model.cv is None else dataclasses.replace(model, cv=model.cv * change.cv)
            for model in models
        )
    found = workload_of(dataclasses.replace(config, models=models, traffic=more))
    if traffic.trace is not None and (change.cv != 1 or change.draw):
        rng = np.random.default_rng(traffic.seed + change.draw)
        found = refit(found, 60.0 / change.rate, rng, cv_scale=change.cv)
    if change.slo == 1:
        return found
    slo_s, tpot_s = found.slo_s * change.slo, found.tpot_s * change.slo
    return dataclasses.replace(found, slo_s=slo_s, tpot_s=tpot_s)
