"""Refusals that only a cluster has."""

import math

from recipes.place.fleet import Refusal, Slo
from recipes.serve.errors import ApiError, unavailable


def not_in_time(refusal: Refusal, slo: Slo) -> ApiError:
    """429: no group is predicted to keep the limits; says what is predicted, and when to try
    again."""
    ttft_s, tpot_s = refusal.prediction
    wanted = " and ".join(
        f"{limit:g} s {what}"
        for limit, what in ((slo.ttft_s, "to the first token"), (slo.tpot_s, "a token"))
        if math.isfinite(limit)
    )
    message = (
        f"No group can answer in time: {ttft_s:.3f} s to the first token and {tpot_s:.4f} s a "
        f"token are predicted, {wanted} wanted."
    )
    more = {
        "predicted_ttft_s": round(ttft_s, 6),
        "predicted_tpot_s": round(tpot_s, 6),
        "retry_after_s": round(refusal.retry_s, 3),
    }
    headers = {"retry-after": str(whole_seconds(refusal.retry_s))}
    return ApiError(429, message, code="slo_unreachable", headers=headers, more=more)


def not_loaded_yet(model: str, wait_s: float) -> ApiError:
    """429: what could make room for the model must stay for longer than the request may wait."""
    message = (
        f"The model {model!r} is not loaded, and those that could make room for it were loaded a "
        f"moment ago: {wait_s:.1f} s to the first token are predicted."
    )
    more = {"predicted_ttft_s": round(wait_s, 3), "retry_after_s": round(wait_s, 3)}
    headers = {"retry-after": str(whole_seconds(wait_s))}
    return ApiError(429, message, code="model_not_loaded", headers=headers, more=more)


def not_loaded(model: str, why: str, waited_s: float) -> ApiError:
    """503: the model is on no group, and was not loaded within the time that requests wait."""
    message = f"The model {model!r} is not loaded: {why}; requests wait {waited_s:g} s for it."
    return unavailable(message, retry_after=5)


def whole_seconds(value: float) -> int:
    """For Retry-After: at least 1, at most an hour.

    >>> whole_seconds(0.2), whole_seconds(1.2), whole_seconds(float("inf"))
    (1, 2, 3600)
    """
    return max(1, math.ceil(min(value, 3600.0)))
