"""What a run depends on, all of it drawn from one seed."""

import dataclasses
import random

from blocks._checks import check, check_count, is_number
from blocks.sched.policy import POLICIES, Policy, aged_priority


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a run depends on; rates are chances per step unless said otherwise."""

    seed: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    token_budget: int
    max_model_len: int
    policy: str
    aging_s: float
    watermark: float
    max_waiting: int
    arrival_rate: float
    cancel_share: float = 0.05  # of requests
    stop_rate: float = 0.01
    quarantine_rate: float = 0.002
    poison_share: float = 0.002  # of requests
    shortage_rate: float = 0.001  # of allocator calls
    failed_step_rate: float = 0.01
    lost_rate: float = 0.01
    late_rate: float = 0.01
    duplicate_rate: float = 0.01
    clock_jump_rate: float = 0.01
    full_check_every: int = 16
    max_in_flight: int = 1

    def __post_init__(self) -> None:
        check(type(self.seed) is int, "seed", "a whole number", repr(self.seed))
        known = isinstance(self.policy, str) and self.policy in POLICIES
        check(known, "policy", f"one of {sorted(POLICIES)}", repr(self.policy))
        aged_priority(self.aging_s)  # refuses what is no time
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "seed":
                check_count(field.name, value)
            elif field.name.endswith(("_rate", "_share", "watermark")):
                share = is_number(value) and 0 <= value <= 1
                check(share, field.name, "a share from 0 to 1", repr(value))

    @classmethod
    def from_seed(cls, seed: int) -> "Options":
        """Sizes small enough to be short of everything, drawn from the seed."""
        rng = random.Random(seed)
        block_size = rng.choice([1, 2, 4, 4, 8, 16])
        max_model_len = rng.randint(12, 72)
        least = -(-max_model_len // block_size)
        max_num_seqs = rng.choice([1, 2, 4, 8, 12])
        return cls(
            seed=seed,
            num_blocks=int(least * rng.uniform(0.8, 4)) + 1,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            token_budget=max_num_seqs + rng.choice([0, 1, 5, 16, 64]),
            max_model_len=max_model_len,
            policy=rng.choice(sorted(POLICIES)),
            aging_s=rng.choice([0.1, 1.0, 100.0]),
            watermark=rng.choice([0.0, 0.01, 0.2]),
            max_waiting=rng.choice([2, 8, 16]),
            arrival_rate=rng.choice([0.1, 0.3, 0.9]),
            max_in_flight=rng.choice([1, 1, 2, 4]),
        )

    def make_policy(self) -> str | Policy:
        return aged_priority(self.aging_s) if self.policy == "priority" else self.policy
