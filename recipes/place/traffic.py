"""The traffic that a config plans for, as a ``Workload``. Needs no torch."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blocks._checks import check
from blocks.sched.workload import (
    Workload,
    gamma_workload,
    merge,
    power_law_rates,
    read_function_counts,
    read_request_log,
)
from recipes.place.config import PlaceConfig

MOST_REQUESTS = 1e8
"""That are drawn; some gigabytes of them."""


def rates_of(config: PlaceConfig) -> dict[str, float]:
    """Requests a second of every model, ``scale`` counted in."""
    traffic = config.traffic
    unsaid = [model.name for model in config.models if model.rate is None]
    shares = power_law_rates(len(unsaid), traffic.total_rate, traffic.exponent) if unsaid else []
    rates = dict(zip(unsaid, map(float, shares), strict=True))
    rates |= {model.name: model.rate for model in config.models if model.rate is not None}
    return {model.name: rates[model.name] * traffic.scale for model in config.models}


def workload_of(config: PlaceConfig) -> Workload:
    """Drawn from the rates, or the trace, with the models' limits and with lengths.

    Lengths are geometric of the stated mean and end at half the context for prompts and the other
    half for answers; a trace of requests has its own.

    Raises:
        ValueError: a trace of models that are not configured.
    """
    rng = np.random.default_rng(config.traffic.seed)
    names = [model.name for model in config.models]
    traffic = config.traffic
    if traffic.trace is None:
        rates = rates_of(config)
        count = sum(rates.values()) * traffic.duration_s
        hint = "lower the rates, scale or duration_s"
        check(
            count <= MOST_REQUESTS, "traffic", f"at most {MOST_REQUESTS:.0e} requests", count, hint
        )
        cvs = [model.cv or traffic.cv for model in config.models]
        drawn = gamma_workload([rates[n] for n in names], cvs, traffic.duration_s, rng, names)
    elif traffic.trace_kind == "functions":
        counts = read_function_counts(Path(traffic.trace)).striped(names)
        drawn = _part(config, counts.replay(rng))
    else:
        only = names[0] if len(names) == 1 else "model"
        log = read_request_log(Path(traffic.trace), model=traffic.trace_model, name=only)
        unknown = sorted(set(log.models) - set(names))
        hint = "name the column of models as trace_model, and every model in the config"
        check(not unknown, f"trace {Path(traffic.trace).name}", f"models of {names}", unknown, hint)
        nobody = Workload.of(names, [], duration_s=0.0)  # all models, in the config's order
        return _limited(config, merge([nobody, _part(config, log)]))
    return _limited(config, _with_lengths(config, drawn, rng))


def _part(config: PlaceConfig, trace: Workload) -> Workload:
    """The stretch of a trace that is asked for, faster or slower."""
    traffic = config.traffic
    stop_s = traffic.begin_s + traffic.duration_s
    whole = stop_s >= trace.duration_s  # then its last request belongs to it
    part = trace.slice(traffic.begin_s, math.inf if whole else stop_s)
    return part.faster(traffic.scale)


def _with_lengths(config: PlaceConfig, drawn: Workload, rng: np.random.Generator) -> Workload:
    half = max(1, config.engine.max_model_len // 2)

    def lengths(means: list[int]) -> npt.NDArray[np.int32]:
        mean = np.array(means, np.float64)[drawn.model]
        return np.minimum(rng.geometric(1 / mean), half).astype(np.int32)

    prompts = [model.prompt_len or config.traffic.prompt_len for model in config.models]
    outputs = [model.output_len or config.traffic.output_len for model in config.models]
    return drawn.with_lengths(lengths(prompts), lengths(outputs))


def _limited(config: PlaceConfig, workload: Workload) -> Workload:
    never = float("inf")
    first = {model.name: model.ttft_s or model.slo_s or never for model in config.models}
    later = {model.name: model.tpot_s or never for model in config.models}
    return workload.with_slo(first, later)
