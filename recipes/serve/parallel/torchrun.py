"""Under torchrun, which has started every process already: the first serves, all are ranks.

``torchrun --nproc-per-node 4 -m recipes.serve FOLDER tp=2 pp=2``: the process with rank 0 becomes
the engine and starts a process that is rank 0 of the model; the others ask it what they are to be.
"""

import os
from collections.abc import Sequence

import torch.distributed as dist

from blocks._checks import check
from recipes.serve.model_runner import RunnerLost
from recipes.serve.parallel.rank import be_rank
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.parallel.start import Ranks, exec_ranks


def in_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
    )


def is_engine() -> bool:
    """Whether this is the process of them that serves."""
    return os.environ["RANK"] == "0"


def be_torchrun_rank() -> None:
    """Wait for what the engine says this process is to be, and be it; does not return."""
    store, rank, _ = next(iter(dist.rendezvous("env://")))
    be_rank(store.get(_name(rank)).decode())


class TorchrunRanks:
    """A ``Start``: hands every process that torchrun has started its spec, once.

    Args:
        num_ranks: of the model.

    Raises:
        ValueError: torchrun has started another number of processes.
    """

    def __init__(self, num_ranks: int) -> None:
        world = int(os.environ["WORLD_SIZE"])
        hint = "see torchrun --nproc-per-node"
        check(num_ranks == world, "tp * pp", f"the number of processes, {world}", num_ranks, hint)
        self._store, _, _ = next(iter(dist.rendezvous("env://")))
        self._used = False

    @property
    def host(self) -> str | None:
        """Where the engine listens: None for a Unix socket, where all are on one machine."""
        alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
        return None if alone else os.environ["MASTER_ADDR"]

    @property
    def rendezvous(self) -> str:
        """The store that torchrun serves."""
        return f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}/{_name('ranks')}"

    def __call__(self, specs: Sequence[RankSpec]) -> Ranks:
        """
        Raises:
            RunnerLost: the ranks have been started before, and are gone.
        """
        if self._used:
            raise RunnerLost("the ranks are gone; torchrun --max-restarts starts all of them again")
        self._used = True
        for spec in specs[1:]:
            self._store.set(_name(spec.rank), spec.to_json())
        return exec_ranks(specs[:1])


def _name(of: int | str) -> str:
    return f"blocks/serve/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{of}"
