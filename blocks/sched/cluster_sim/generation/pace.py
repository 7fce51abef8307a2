"""``Pace``: machines whose speed changes while they work."""

from collections.abc import Callable

Pace = Callable[[int, float], float]
"""``pace(group, now_s)``: how many times the profile's seconds a step takes that begins now."""
