"""``ParallelRunner``: a model cut over processes, as the engine knows it."""

import collections
import contextlib
import logging
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blocks._checks import check
from blocks.kv import BlockManager
from blocks.sched import Batch
from recipes.model import ModelConfig, read_config
from recipes.serve.batch_tensors import BatchTensors
from recipes.serve.config import EngineConfig
from recipes.serve.model_runner import RunnerLost, StepResult
from recipes.serve.parallel.cache_size import cache_blocks, explain_cache
from recipes.serve.parallel.layout import Layout
from recipes.serve.parallel.meeting import serve_store
from recipes.serve.parallel.messages import Result, step_frame
from recipes.serve.parallel.piece_cost import PieceCost
from recipes.serve.parallel.probe import probe
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.parallel.start import Start, exec_ranks
from recipes.serve.parallel.step_slices import StepSlices
from recipes.serve.parallel.worker_group import WorkerGroup
from recipes.serve.plain_batch import PlainBatch
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw

log = logging.getLogger("recipes.serve")


class ParallelRunner:
    """A ``ModelRunner`` whose model runs in ``tp * pp`` processes, all given every batch, one after
    another; each computes its part of a batch as soon as it has done so with the one before.

    This process holds no weights and no cache, and takes part in no collective: whatever happens to
    the ranks, it can say so, end them and start others.

    Args:
        folder: of the model; every rank reads its part of it.
        config: with ``tp`` and ``pp``.
        start: brings processes to life; fresh interpreters on this machine by default.
        num_threads: of every rank, on the CPU; default a fair share of torch's.
        host: address of this machine that ranks on other machines can reach; None where all are
            here, and nothing listens on a port.
        rendezvous: see ``RankSpec``; None makes a place of its own for every group.

    Raises:
        ValueError: a model that cannot be cut so.
        RunnerLost: the ranks do not start.
    """

    def __init__(
        self,
        folder: str | Path,
        config: EngineConfig,
        *,
        start: Start = exec_ranks,
        num_threads: int | None = None,
        host: str | None = None,
        rendezvous: str | None = None,
    ) -> None:
        self.model: ModelConfig = read_config(folder)
        self.layout = Layout(config.tp, config.pp)
        self.layout.check(self.model)
        self.dtype = config.dtype or self.model.dtype
        self.block_size = config.block_size
        weights = getattr(torch, self.dtype)
        self.num_blocks, self._block_bytes = cache_blocks(self.model, self.layout, config, weights)
        self.seq_lens: Tensor | None = None
        self._folder, self._config, self._start = Path(folder).resolve(), config, start
        ranks = self.layout.num_ranks
        self._num_threads = num_threads or max(1, torch.get_num_threads() // ranks)
        self._host, self._rendezvous = host, rendezvous
        self._store: object = None  # serves for as long as it is kept
        self.depth = config.pp_batches or config.pp
        self._number = 0
        self._out: collections.deque[int] = collections.deque()  # numbers of steps under way
        self._first_s = 0.0  # since when the first of them is the first
        self._group: WorkerGroup | None = None
        self._closed = False
        group = self._running()
        self.weight_bytes = group.weight_bytes
        self.slices = StepSlices(config.pp, self._probe(group), config.pp_slices)

    def explain(self) -> str:
        return explain_cache(
            self.model, self.layout, self.num_blocks, self._block_bytes, self.block_size
        )

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        if self._group is not None and self._group.is_broken():
            self._drop()
        self._out.clear()
        self._manager = manager
        self.seq_lens = None
        self._tensors = BatchTensors(
            manager.table,
            num_rows=max_num_seqs,
            block_size=self.block_size,
            max_blocks=-(-max_model_len // self.block_size),
            device=torch.device("cpu"),
        )

    def is_lost(self) -> bool:
        return self._group is not None and self._group.is_broken()

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        """Raises:
        RunnerLost: a rank died; all have been ended. The next call starts others.
        """
        group = self._running()
        copies = self._manager.take_copies()
        plain = self._tensors.plain(batch)
        self.seq_lens = torch.from_numpy(plain.starts + plain.counts)
        bounds = self.slices.bounds(plain, alone=not self._out)
        self._send(group, copies, plain, bounds, draws, prompts)

    def collect(self) -> StepResult:
        """Raises:
        RunnerLost: a rank died, failed or hung; all have been ended.
        """
        check(bool(self._out), "collect", "a batch under way", "none", "submit it first")
        found = self._receive(self._running())
        return StepResult(found.drawn, found.scores)

    def wait(self, timeout_s: float, wakes: Sequence[int]) -> bool:
        """Whether ``collect`` has something to return or raise, once it has; False after so long,
        or when one of the files ``wakes`` can be read.
        """
        check(bool(self._out), "wait", "a batch under way", "none", "submit it first")
        left_s = max(0.0, self._first_s + self._config.step_timeout - time.monotonic())
        there = self._running().has_result(self._out[0], min(timeout_s, left_s), wakes)
        return there or time.monotonic() >= self._first_s + self._config.step_timeout

    @property
    def is_running(self) -> bool:
        """Whether there are ranks, or the next step would have to start them."""
        return self._group is not None

    def start(self) -> None:
        """Start ranks if there are none, which the next step would otherwise wait for.

        Raises:
            RunnerLost: they do not start.
        """
        self._running()

    def close(self) -> None:
        self._closed = True
        if self._group is not None:
            self._group.end(patience_s=2.0)
            self._drop()

    def _send(
        self,
        group: WorkerGroup,
        copies: list[tuple[int, int]],
        batch: PlainBatch,
        bounds: list[int],
        draws: Sequence[Draw] = (),
        prompts: Sequence[PromptRows] = (),
    ) -> None:
        self._number += 1
        with self._ending_ranks():
            group.send(step_frame(self._number, copies, batch, bounds, draws, prompts))
        if not self._out:
            self._first_s = time.monotonic()
        self._out.append(self._number)

    def _receive(self, group: WorkerGroup) -> Result:
        with self._ending_ranks():
            number, limit_s = self._out.popleft(), self._config.step_timeout
            found = group.result(number, limit_s, self._first_s)
        self._first_s = time.monotonic()
        return found

    @contextlib.contextmanager
    def _ending_ranks(self) -> Iterator[None]:
        """Whoever is lost takes the others with it."""
        try:
            yield
        except RunnerLost as error:
            log.error("the ranks of the model are ended: %s", error)
            self._drop()
            raise

    def _probe(self, group: WorkerGroup) -> PieceCost | None:
        """What runs of tokens cost on the stages; None where steps are not to be cut by it."""
        config = self._config
        if config.pp == 1 or config.pp_slices is not None:
            return None
        limit = config.max_model_len or self.model.max_positions

        def run(batch: PlainBatch, bounds: list[int]) -> None:
            self._send(group, [], batch, bounds)
            self._receive(group)

        found = probe(
            run,
            num_stages=config.pp,
            max_tokens=config.token_budget,
            max_len=min(limit, (self.num_blocks - 1) * self.block_size),
            block_size=self.block_size,
        )
        log.info("runs of a step on a stage: %s", found or "not worth cutting")
        return found

    def _drop(self) -> None:
        if self._group is not None:
            self._finalizer()
            self._group = None
        self._out.clear()

    def _running(self) -> WorkerGroup:
        """The group of ranks, started if there is none."""
        check(not self._closed, "runner", "one that is not closed", "a closed one")
        if self._group is None:
            group = self._group = WorkerGroup(
                self.layout, self._specs, self._start, host=self._host
            )
            self._finalizer = weakref.finalize(self, group.end)
        return self._group

    def _specs(self, address: str, key: str, folder: str) -> list[RankSpec]:
        config, place = self._config, self._rendezvous
        if place is None and self._host is None:
            place = f"file://{folder}/store"
        elif place is None and self._host is not None:
            self._store, place = serve_store(self._host)
        return [
            RankSpec(
                rank=rank,
                tp=config.tp,
                pp=config.pp,
                address=address,
                key=key,
                rendezvous=place or "",
                folder=str(self._folder),
                num_blocks=self.num_blocks,
                block_size=config.block_size,
                dtype=config.dtype,
                kv_dtype=config.kv_dtype,
                device=config.device,
                device_index=rank,
                max_positions=config.max_model_len,
                num_threads=self._num_threads,
                timeout_s=config.step_timeout,
            )
            for rank in range(self.layout.num_ranks)
        ]
