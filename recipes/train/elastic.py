"""Restarts without a hand: go on from the newest checkpoint, on as many processes as there are.

torchrun starts all processes of a run again when one is lost. With ``--max-restarts`` the number
stays; with ``--nnodes=MIN:MAX`` it may change, and ``fit_world`` finds a layout for it. Where
numbers depend on the order of sums (``canonical``), no layout changes a bit.
"""

import dataclasses
import os
from collections.abc import Mapping

from blocks._checks import check, fail
from recipes.train.config import TrainConfig
from recipes.train.layout import layout_of


def restart_count(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun (or ``launch``) has started this process again after a failure."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))


def world_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes torchrun started; None outside it."""
    text = environment.get("WORLD_SIZE")
    return None if text is None else int(text)


def fit_world(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """The config laid out over ``num_ranks`` processes, as near to what it asks for as can be.

    A layout that fits is left as it is. Otherwise the pipeline is kept and the replicas follow,
    if the lanes can be dealt to them; else the layout with most replicas is taken among those
    with enough layers. ``tp`` is kept: it changes bits. A changed pipeline takes the schedule and
    the cut of layers that "auto" gives.

    Raises:
        ValueError: no layout does, or the layout comes from a plan file.
    """
    if layout_of(config).num_ranks == num_ranks:
        return config
    hint = "a plan holds for its own number of processes; leave it out"
    check(
        config.plan is None, "plan", "none where the number of processes changes", config.plan, hint
    )
    lanes = config.lanes or config.dp
    if num_ranks % config.tp == 0:
        for dp, pp in _layouts(config, num_ranks // config.tp):
            if lanes % dp == 0 and config.batch_size % dp == 0 and pp <= config.num_layers:
                return _laid_out(config, dp, pp, lanes)
    expected = f"dp (a divisor of {lanes} lanes) * pp (at most {config.num_layers}) * {config.tp}"
    raise fail("processes", expected, num_ranks, "start another number of them")


def _layouts(config: TrainConfig, count: int) -> list[tuple[int, int]]:
    """Every (dp, pp) with that product: the pipeline asked for first, then most replicas first."""
    found = [(dp, count // dp) for dp in range(count, 0, -1) if count % dp == 0]
    return sorted(found, key=lambda layout: layout[1] != config.pp)


def _laid_out(config: TrainConfig, dp: int, pp: int, lanes: int) -> TrainConfig:
    changed = dataclasses.replace(config, dp=dp, pp=pp, lanes=lanes)
    if pp == config.pp:
        return changed
    return dataclasses.replace(changed, schedule="auto", chunks=1, layers_per_stage=None)
