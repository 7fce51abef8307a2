"""``replay``: the simulator on a trace's own durations, held against what was measured.

Needs no torch.
"""

import dataclasses

from blocks.pipeline.action import Action
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.measured import Clock, durations_s, measured_timeline, transfer_s
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import simulate
from blocks.pipeline.timeline import Number, Timeline
from blocks.pipeline.trace import Trace


@dataclasses.dataclass(frozen=True)
class Replay:
    """A step as it was measured, replayed, and predicted without having seen it.

    measured, replayed, predicted: timelines in seconds; ``predicted`` from a cost surface, None
        where none was given.
    transfer_s: seconds between ranks that replay and prediction reckon with.
    """

    measured: Timeline
    replayed: Timeline
    predicted: Timeline | None
    transfer_s: float

    @property
    def replay_error(self) -> float:
        """(replayed - measured) / measured makespan: what the simulator leaves out."""
        return float(self.replayed.makespan / self.measured.makespan) - 1

    @property
    def prediction_error(self) -> float | None:
        """(predicted - measured) / measured makespan: that, and what the surface leaves out."""
        if self.predicted is None:
            return None
        return float(self.predicted.makespan / self.measured.makespan) - 1

    def __str__(self) -> str:
        said = (
            f"measured {self.measured.makespan:.6g} s, bubble {float(self.measured.bubble):.1%}; "
            f"replayed {self.replayed.makespan:.6g} s ({self.replay_error:+.1%})"
        )
        if self.predicted is not None:
            said += f"; predicted {self.predicted.makespan:.6g} s ({self.prediction_error:+.1%})"
        return said


def replay(trace: Trace, cost: CostSurface | None = None, *, clock: Clock = "wall") -> Replay:
    """Simulate the schedule of a trace with the durations it measured.

    Args:
        trace: of all ranks.
        cost: seconds of a slice on one stage, fitted elsewhere, for a prediction beside it.
        clock: ``cpu`` replays what the threads computed: the step of an undisturbed machine, so
            its makespan is no figure of this run.

    Raises:
        ValueError: a trace with actions missing or done twice.
    """
    taken = durations_s(trace, clock)
    between = transfer_s(trace)
    program = compute_only(trace.schedule)

    def transfer(_: Action) -> Number:
        return between

    predicted = None
    if cost is not None:

        def seconds(action: Action) -> Number:
            start, stop = trace.tokens(action)
            return cost.seconds(action.kind, stop - start, start)

        predicted = simulate(program, seconds, transfer=transfer)
    replayed = simulate(program, taken.__getitem__, transfer=transfer)
    return Replay(measured_timeline(trace), replayed, predicted, between)


def compute_only(schedule: Schedule) -> Schedule:
    """The schedule without sends and receives, which its edges imply."""
    programs = tuple(
        tuple(action for action in program if action.kind.computes) for program in schedule.programs
    )
    return dataclasses.replace(schedule, programs=programs)
