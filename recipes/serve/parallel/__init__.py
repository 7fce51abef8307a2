"""The engine's model cut over processes: by heads (tp) and by layers (pp).

``ParallelRunner`` is what the engine sees; ``run_rank`` is what every process does, given a
``RankSpec``; ``Start`` is how processes come to life, and all that another launcher replaces.
"""

from recipes.serve.parallel.layout import Layout
from recipes.serve.parallel.rank import run_rank
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.parallel.runner import ParallelRunner
from recipes.serve.parallel.start import Ranks, Start, exec_ranks, fork_ranks
from recipes.serve.parallel.worker_group import WorkerGroup

__all__ = [
    "Layout",
    "ParallelRunner",
    "RankSpec",
    "Ranks",
    "Start",
    "WorkerGroup",
    "exec_ranks",
    "fork_ranks",
    "run_rank",
]
