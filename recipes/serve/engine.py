"""The engine: requests in, deltas out, one ``step`` at a time.

schedule -> forward -> draw -> update -> text. Where the model runs in stages, batches of several
steps are under way at a time: a step sends out what can be sent and takes in the first of them.
Nothing here waits, sleeps or talks to anybody but the model; who calls ``step`` decides about
threads. An error in what belongs to one request ends that request; one in the forward pass rolls
the step back, and the scheduler narrows down whose fault it is.
"""

import collections
import logging
import time
from collections.abc import Callable

from blocks.kv import BlockManager
from blocks.sched import Batch, Output, Scheduler
from recipes.serve.admission import check_prompt
from recipes.serve.config import EngineConfig
from recipes.serve.job import Job
from recipes.serve.live import Live
from recipes.serve.metrics import EngineStats, Metrics
from recipes.serve.model_runner import ModelRunner, RunnerLost
from recipes.serve.outputs import Delta
from recipes.serve.step import Outcome, Step
from recipes.serve.tally import Tally
from recipes.serve.text_stream import Detokenizer

log = logging.getLogger("recipes.serve")


class Engine:
    """Continuous batching over a paged cache.

    Not thread-safe: one caller drives ``add``, ``cancel`` and ``step``; ``stats`` may be read from
    anywhere.

    Invariants:
        1. Every accepted request ends with one finishing delta per sample, unless it is cancelled.
        2. With no request left, no sequence holds a block.
        3. The batches that the scheduler has out are those that the runner has under way, in order.

    Args:
        runner: the model with its cache.
        detokenizer: makes one for a sequence; the argument says whether to skip special tokens.
        config: limits.
        clock: seconds, monotonic; for scheduling order and latencies.

    on_batch: told of every batch before it is computed; None for nobody.
    """

    def __init__(
        self,
        runner: ModelRunner,
        detokenizer: Callable[[bool], Detokenizer],
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.runner = runner
        self.vocab_size = runner.model.vocab_size
        limit = config.max_model_len or runner.model.max_positions
        self.max_model_len = min(limit, (runner.num_blocks - 1) * runner.block_size)
        self.metrics = Metrics(self.stats)
        self._tally = Tally(self.metrics)
        self.on_batch: Callable[[Batch], object] | None = None
        self._detokenizer = detokenizer
        self._clock = clock
        self._eos = tuple(runner.model.eos_token_ids)
        self._live: dict[str, Live] = {}
        self._deltas: list[Delta] = []  # that nobody has been told of
        self._reset()

    def _reset(self) -> None:
        config, runner = self.config, self.runner
        self.manager = BlockManager(runner.num_blocks, runner.block_size)
        self.scheduler = Scheduler(
            self.manager,
            token_budget=config.token_budget,
            max_num_seqs=config.max_num_seqs,
            max_model_len=self.max_model_len,
            policy=config.policy,
            clock=self._clock,
            max_waiting=config.max_waiting,
            max_in_flight=runner.depth,
        )
        self._out: collections.deque[Step] = collections.deque()
        limits = {"max_num_seqs": config.max_num_seqs, "max_model_len": self.max_model_len}
        runner.begin(self.manager, **limits)

    def has_work(self) -> bool:
        """Whether any accepted request has not ended, or any batch is under way."""
        return bool(self._live or self._out)

    def check(self, job: Job) -> int:
        """The most tokens a job may generate; raises ``ValueError`` if it can never be served."""
        return check_prompt(
            job.prompt_tokens,
            job.params,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
        )

    def add(self, job: Job) -> None:
        """Queue a request.

        Raises:
            ValueError: it can never be served (``ContextTooLong`` says by how much).
            QueueFull: try again later.
        """
        max_tokens = self.check(job)
        if not self._live and self.runner.is_lost():  # while nothing ran: nobody need know
            self._reset()
        live = Live(job, max_tokens, self._eos, self._detokenizer)
        self.scheduler.add(live.request)  # last of what may raise
        self._live[job.request_id] = live
        self._tally.num_prompt_tokens += len(job.prompt_tokens)

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free its blocks; no delta follows. False if it is not known."""
        if self._live.pop(request_id, None) is None:
            return False
        self.scheduler.cancel(request_id)
        return True

    def step(self) -> list[Delta]:
        """Compute one batch and report what each sequence gained.

        Where the runner may have several under way, as many as can be are sent out first.
        """
        return self._survive(self._send_out, self._take_in)

    @property
    def num_out(self) -> int:
        """Batches under way."""
        return len(self._out)

    def begin(self, num_batches: int | None = None) -> list[Delta]:
        """Half of a step, for whoever decides himself when the next one is sent out: send one
        batch, if there may be one more and can be; ``num_out`` tells.

        Args:
            num_batches: see ``Scheduler.schedule``.
        """
        return self._survive(lambda: self._send_one(num_batches))

    def finish(self) -> list[Delta]:
        """The other half: wait for the first of the batches under way, if there is one."""
        return self._survive(self._take_in)

    def _survive(self, *parts: Callable[[], None]) -> list[Delta]:
        """What the parts of a step report, and the end of everybody where the runner is lost."""
        try:
            for part in parts:
                part()
        except RunnerLost as error:
            log.error("step %d: %s", self.scheduler.counters.num_steps, error)
            self._tally.num_failed_steps += 1
            return self.abort_all(str(error).splitlines()[0], lost=True)
        return self._report()

    def _report(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _send_out(self) -> None:
        """Have as many batches under way as there may be and can be."""
        num_out = -1
        while num_out < len(self._out) and not self._deltas:
            num_out = len(self._out)
            self._send_one()

    def _send_one(self, num_batches: int | None = None) -> None:
        if len(self._out) >= self.runner.depth:
            return
        batch = self.scheduler.schedule(num_batches)
        if not batch.entries:
            return
        self.metrics.step(batch.num_tokens)
        if self.on_batch is not None:
            self.on_batch(batch)
        try:
            step = Step(batch, self._live)
            self.runner.submit(batch, step.draws, step.prompts)
        except RunnerLost:
            raise
        except Exception as error:
            self._roll_back(batch, error)
        else:
            self._out.append(step)

    def _take_in(self) -> None:
        """Wait for the first of the batches under way, and turn what came of it into deltas."""
        if not self._out:
            return
        step = self._out.popleft()
        try:
            outcome = step.outcome(self.runner.collect(), self._live)
        except RunnerLost:
            raise
        except Exception as error:
            self._roll_back(step.batch, error)
            return
        for request_id, error in outcome.errors.items():
            self._fail(request_id, error)
        now = self._clock()
        for output in self.scheduler.update(step.batch, outcome.tokens):
            self._advance(output, outcome, now)

    def _advance(self, output: Output, outcome: Outcome, now: float) -> None:
        """One new token of one sequence: its text, its metrics, its end."""
        sequence, token, reason = output
        request_id = sequence.request.request_id
        live = self._live.get(request_id)
        if live is None or token is None:
            return  # the request failed earlier in this step
        self._tally.num_output_tokens += 1
        try:
            delta = live.gain(sequence, token, reason)
        except Exception:
            log.exception("text of request %s", request_id)
            self._fail(request_id, "the output could not be turned into text")
            return
        self._deltas.append(delta)
        if live.job.params.logprobs is not None:
            delta.logprobs = [outcome.logprobs[request_id, sequence.index]]
        if delta.finish_reason is not None:
            if reason is None:  # by a stop string, of which the scheduler knows nothing
                self.scheduler.stop(sequence.sequence_id)
            if live.done:
                del self._live[request_id]
        self._tally.observe(live.samples[sequence.index], sequence, delta, now)

    # ---- what goes wrong ----

    def _fail(self, request_id: str, error: str) -> None:
        """End one request with an error; whatever it computed can no longer be found."""
        live = self._live.pop(request_id, None)
        if live is None:
            return
        ids = [sequence.sequence_id for sequence in self.scheduler.sequences(request_id)]
        self.scheduler.fail_sequences(ids)
        self._end_with_error(live, error)

    def _roll_back(self, batch: Batch, error: Exception) -> None:
        """The forward pass raised: nothing of the step counts; who keeps failing alone is ended."""
        log.error("step %d failed and is rolled back", batch.step, exc_info=error)
        self._tally.num_failed_steps += 1
        message = f"the model failed on this request ({type(error).__name__})"
        for request_id in {o.sequence.request.request_id for o in self.scheduler.fail(batch)}:
            self._fail(request_id, message)

    def abort_all(self, error: str, *, lost: bool = False) -> list[Delta]:
        """Fail every request and start over with an empty cache, after an error of our own. What
        an interrupted step has to report comes first.

        Args:
            lost: see ``Delta``.
        """
        for live in self._live.values():
            self._end_with_error(live, error, lost=lost)
        self._live.clear()
        self._reset()
        return self._report()

    def _end_with_error(self, live: Live, error: str, *, lost: bool = False) -> None:
        for delta in live.fail(error, lost=lost):
            self._deltas.append(delta)
            self.metrics.finished(None, "error")

    # ---- the rest ----

    def close(self) -> None:
        """End the model's processes where it has any; nothing may be asked afterwards."""
        self.runner.close()

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return self._tally.stats(self.scheduler, self.manager, self.runner)
