"""``told_steps``: steps of one device, and a line about each as soon as it is done."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recipes.plan.execute.planned_module import Microbatch
from recipes.plan.execute.planned_pipeline import PlannedPipeline


class StepDone(NamedTuple):
    """What is known after a step.

    step: steps done, from 1. num_steps: of the run.
    loss: mean of the microbatches.
    seconds: of the step. eta_s: of the steps to go, if they take as long on average.
    """

    step: int
    num_steps: int
    loss: float
    seconds: float
    eta_s: float

    def line(self) -> str:
        """
        >>> StepDone(2, 3, 5.5, 0.25, 0.26).line()
        'step     2/3  loss 5.500000  0.250 s  to go 0.3 s'
        """
        return (
            f"step {self.step:>5}/{self.num_steps}  loss {self.loss:.6f}  {self.seconds:.3f} s  "
            f"to go {self.eta_s:.1f} s"
        )


def told_steps(
    pipeline: PlannedPipeline,
    steps: Sequence[Sequence[Microbatch]],
    tell: Callable[[StepDone], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float] | None:
    """Takes the steps, and tells of each when it is done.

    Args:
        tell: called by one device alone, of those that have the loss.

    Returns:
        The loss of every step; None on devices without it.
    """
    losses: list[float] = []
    first = since = clock()
    for step, microbatches in enumerate(steps, 1):
        loss = pipeline.step(microbatches)
        if loss is None:
            continue
        losses.append(float(loss))
        now = clock()
        if pipeline.speaks:
            eta_s = (now - first) / step * (len(steps) - step)
            tell(StepDone(step, len(steps), losses[-1], now - since, eta_s))
        since = now
    return losses or None
