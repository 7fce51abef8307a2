"""Memory caps of devices, of one or several kinds. Needs no torch."""

from collections.abc import Mapping, Sequence

from blocks._checks import check, check_positive
from blocks.pipeline.inter_op.submesh import SubmeshShape

Caps = int | float | Mapping[str, int | float] | None
"""Bytes of a device; by kind where there are several; None for no cap."""


def caps_of(caps: Caps, shapes: Sequence[SubmeshShape]) -> list[float]:
    """Bytes of a device of every shape.

    Raises:
        ValueError: a cap that is not positive, a kind without one.
    """
    if caps is None:
        return [float("inf")] * len(shapes)
    if not isinstance(caps, Mapping):
        check_positive("memory_cap_bytes", caps, "pass None for no cap")
        return [float(caps)] * len(shapes)
    missing = sorted({shape.kind for shape in shapes} - set(caps))
    check(not missing, "memory_cap_bytes", f"a number for the kinds {missing} too", [*caps])
    for kind, cap in caps.items():
        check_positive(f"memory_cap_bytes of {kind}", cap)
    return [float(caps[shape.kind]) for shape in shapes]
