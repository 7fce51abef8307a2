"""What a scheduler counts, for metrics."""

import dataclasses

from blocks.sched.request import FinishReason


@dataclasses.dataclass(slots=True)
class Counters:
    """Totals since construction. Gauges (running, waiting) are properties of the `Scheduler`.

    num_requests: accepted; num_unservable and num_queue_full: refused.
    num_admissions: from waiting to running, returns after a preemption included.
    num_preemptions: sequences that gave their blocks up to another.
    num_rollbacks: sequences sent back to waiting by a failed step.
    num_stale_batches, num_stale_entries: completions dropped since they came late or twice, or for
        a sequence that had ended.
    prefix_query_tokens, prefix_hit_tokens: tokens of admitted sequences, and those found cached.
    num_finished: samples ended, by reason.
    """

    num_steps: int = 0
    num_failed_steps: int = 0
    num_scheduled_tokens: int = 0
    num_generated_tokens: int = 0
    num_requests: int = 0
    num_unservable: int = 0
    num_queue_full: int = 0
    num_admissions: int = 0
    num_preemptions: int = 0
    num_forks: int = 0
    num_rollbacks: int = 0
    num_stale_batches: int = 0
    num_stale_entries: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_finished: dict[FinishReason, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(FinishReason, 0)
    )
