"""``proven``: a schedule checked and written out, once. Needs no torch."""

from blocks.pipeline.check import check_schedule
from blocks.pipeline.dependencies import is_lowered
from blocks.pipeline.lower import lower
from blocks.pipeline.schedule import Schedule


def proven(schedule: Schedule) -> Schedule:
    """The schedule with sends and receives, checked; work done once for one schedule.

    Raises:
        ValueError: see ``check_schedule``.
    """
    kept = schedule.__dict__.get("_proven")
    if kept is None:
        check_schedule(schedule)
        kept = schedule if is_lowered(schedule) else lower(schedule)
        schedule.__dict__["_proven"] = kept  # the schedule is frozen, so it stays true
    return kept
