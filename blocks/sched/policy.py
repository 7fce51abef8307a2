"""Who goes first: a policy maps a request to a sort key, once, on arrival.

The smallest key is admitted first, the largest is preempted first, so one function gives both
orders; ties go to the earlier arrival. A policy whose keys grow without bound as time passes
starves nobody: only finitely many later requests can come before a given one.
"""

import functools
from collections.abc import Callable
from typing import Any

from blocks._checks import check, fail, is_number
from blocks.sched.request import Request

Policy = Callable[[Request, float], Any]
"""``policy(request, arrival)`` -> anything ordered; arrival in seconds on the scheduler's clock,
never decreasing."""


def fcfs(request: Request, arrival: float) -> float:
    """First come, first served."""
    return arrival


def priority(request: Request, arrival: float, *, aging_s: float = 60.0) -> float:
    """Smaller ``request.priority`` first, and waiting counts: ``aging_s`` seconds make up for one
    level. Linear aging moves all keys alike, so a key fixed at arrival orders as if recomputed.

    >>> urgent, early = (Request(request_id=i, prompt_tokens=[1], max_tokens=1, priority=p)
    ...                  for i, p in (("urgent", 0), ("early", 2)))
    >>> priority(urgent, 100.0) < priority(early, 0.0)
    True
    >>> priority(urgent, 130.0) < priority(early, 0.0)
    False
    """
    return arrival + aging_s * request.priority


def aged_priority(aging_s: float) -> Policy:
    """`priority` with another exchange rate between a level and seconds of waiting."""
    known = is_number(aging_s) and 0 < aging_s < float("inf")
    check(known, "aging_s", "seconds greater than 0", repr(aging_s))
    return functools.partial(priority, aging_s=aging_s)


POLICIES: dict[str, Policy] = {"fcfs": fcfs, "priority": priority}


def choose_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or the function itself."""
    if callable(policy):
        return policy
    if not isinstance(policy, str) or policy not in POLICIES:
        names = " or ".join(repr(name) for name in POLICIES)
        raise fail("policy", f"{names}, or a function of (request, arrival)", repr(policy))
    return POLICIES[policy]
