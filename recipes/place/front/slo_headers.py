"""The limits that a request brings in its headers."""

import math
from collections.abc import Mapping

from recipes.place.fleet import Slo
from recipes.serve.errors import ApiError

TTFT, TPOT = "x-slo-ttft-ms", "x-slo-tpot-ms"


def slo_of(headers: Mapping[str, str], default: Slo) -> Slo:
    """Limits in milliseconds, those of the model where there are none.

    Raises:
        ApiError: 400, a header that is no positive number.
    """
    return Slo(_limit(headers, TTFT, default.ttft_s), _limit(headers, TPOT, default.tpot_s))


def _limit(headers: Mapping[str, str], name: str, default_s: float) -> float:
    text = headers.get(name)
    if text is None:
        return default_s
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        message = f"{name}: expected a positive number of milliseconds, got {text[:40]!r}"
        raise ApiError(400, message, code="invalid_value", param=name)
    return value / 1000
