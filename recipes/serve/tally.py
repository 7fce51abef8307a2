"""``Tally``: what an engine has done and how long it took, for its metrics."""

from blocks.kv import BlockManager
from blocks.sched import Scheduler, Sequence
from recipes.serve.live import Sample
from recipes.serve.metrics import EngineStats, Metrics
from recipes.serve.model_runner import ModelRunner
from recipes.serve.outputs import Delta


class Tally:
    """Sums that outlive the scheduler, which starts anew with an empty cache.

    num_prompt_tokens: of accepted requests. num_output_tokens: that were generated.
    num_failed_steps: steps that raised and were rolled back.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.num_prompt_tokens = self.num_output_tokens = self.num_failed_steps = 0
        self._metrics = metrics

    def observe(self, sample: Sample, sequence: Sequence, delta: Delta, now: float) -> None:
        """Latencies of a token, and of the whole sequence where it is the last."""
        if sequence.num_output == 1:
            queued = (sequence.first_scheduled or now) - sequence.arrival
            self._metrics.first_token(now - sequence.arrival, queued)
        else:
            self._metrics.next_token(now - sample.last_token)
        sample.last_token = now
        if delta.finish_reason is not None:
            self._metrics.finished(now - sequence.arrival, delta.finish_reason)

    def stats(
        self, scheduler: Scheduler, manager: BlockManager, runner: ModelRunner
    ) -> EngineStats:
        """A snapshot, with how things stand in the engine's parts."""
        counters = scheduler.counters
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_usage=1 - manager.num_free_blocks / manager.num_usable_blocks,
            kv_waste=_kv_waste(runner) if scheduler.num_running else 0.0,
            num_preemptions=counters.num_preemptions,
            prefix_queries=counters.prefix_query_tokens,
            prefix_hits=counters.prefix_hit_tokens,
            prompt_tokens=self.num_prompt_tokens,
            generation_tokens=self.num_output_tokens,
            num_failed_steps=self.num_failed_steps,
        )


def _kv_waste(runner: ModelRunner) -> float:
    """Share of the slots of the last step's sequences without a token."""
    seq_lens = runner.seq_lens
    if seq_lens is None:
        return 0.0
    tokens = int(seq_lens.sum())
    slots = int((-(-seq_lens // runner.block_size)).sum()) * runner.block_size
    return 1 - tokens / slots
