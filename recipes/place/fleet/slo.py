"""``Slo``: how soon a client wants its first token, and each one after it."""

import math
from typing import NamedTuple

from blocks.sched.cluster_sim.generation import Prediction


class Slo(NamedTuple):
    """Limits in seconds; infinite where there is none."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf

    def allows(self, prediction: Prediction, slack: float = 1.0) -> bool:
        """Whether both limits are kept, exceeded by the factor ``slack`` at most."""
        return prediction.ttft_s <= self.ttft_s * slack and prediction.tpot_s <= self.tpot_s * slack
