"""Who asks for what, when: drawn from processes, replayed from traces, scaled, cut and joined.

Plain arrays and a ``numpy`` generator as an argument; needs no torch.
"""

from blocks.sched.workload.arrivals import gamma_arrivals, markov_arrivals, stationary_shares
from blocks.sched.workload.function_counts import FunctionCounts, read_function_counts
from blocks.sched.workload.refit import refit
from blocks.sched.workload.request_log import read_request_log
from blocks.sched.workload.synthetic import (
    gamma_workload,
    markov_workload,
    poisson_workload,
    power_law_rates,
)
from blocks.sched.workload.workload import Workload, merge

__all__ = [
    "FunctionCounts",
    "Workload",
    "gamma_arrivals",
    "gamma_workload",
    "markov_arrivals",
    "markov_workload",
    "merge",
    "poisson_workload",
    "power_law_rates",
    "read_function_counts",
    "read_request_log",
    "refit",
    "stationary_shares",
]
