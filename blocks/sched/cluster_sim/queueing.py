"""What queueing theory says of small clusters: the mean latency of tasks of one length.

Requests come by a Poisson process and each takes the same time: M/D/1 queues. With two models of
equal popularity on two devices, either each model has a device of its own (``simple``), or both are
cut into two stages over both devices (``pipeline``), which halves the waiting and costs overhead.
All functions take exact numbers and give exact ones where no root is drawn.

Reference: Li et al., AlpaServe, 2023, section 3.4; Kendall, 1953, and Pollaczek, 1930, for M/D/1.
"""

import math
from fractions import Fraction
from typing import TypeVar

from blocks._checks import check

Real = TypeVar("Real", float, Fraction)


def md1_latency_s(rate: Real, service_s: Real) -> Real:
    """Mean seconds from arrival to answer in one queue.

    >>> md1_latency_s(Fraction(1, 2), Fraction(1))
    Fraction(3, 2)

    Raises:
        ValueError: more arrives than can be served.
    """
    return pipeline_latency_s(rate, service_s, service_s)


def pipeline_latency_s(rate: Real, latency_s: Real, slowest_s: Real) -> Real:
    """Mean seconds through a pipeline: all stages, and the wait before the slowest.

    Requests of one length wait in a pipeline as long as they would for its slowest stage alone.
    """
    check(rate * slowest_s < 1, "rate * slowest_s", "below 1, or queues grow", rate * slowest_s)
    return latency_s + rate * slowest_s * slowest_s / (2 * (1 - rate * slowest_s))


def apart_latency_s(rate: Real, service_s: Real, share: Real) -> Real:
    """Mean seconds over both models where each has a device of its own.

    Args:
        rate: of both models together.
        share: of the requests that are for the first model.
    """
    first = md1_latency_s(share * rate, service_s)
    return share * first + (1 - share) * md1_latency_s((1 - share) * rate, service_s)


def largest_communication_overhead(load: float) -> float:
    """The factor on a pipeline's latency, stages equal, at which it is no better than ``simple``.

    Args:
        load: arrivals of both models in the time of one request, in (0, 2).

    >>> round(largest_communication_overhead(1.0), 4)
    1.1315
    """
    r = load
    root = math.sqrt(r**4 - 12 * r**3 + 56 * r**2 - 96 * r + 64)
    return (r**2 - 8 + root) / (3 * (r**2 - 2 * r))


def largest_uneven_overhead(load: float) -> float:
    """The factor on the slower of two stages, their sum as before, at which a pipeline is no
    better than ``simple``.

    >>> round(largest_uneven_overhead(1.0), 4)
    1.2361
    """
    r = load
    return (r - math.sqrt(r**2 - 4 * r + 8)) / (r - 2)
