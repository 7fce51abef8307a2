"""``GroupSpec``: all a process needs to know to be one model-parallel group. Plain data."""

import dataclasses
import json
import math
from typing import Literal

from blocks._checks import check, check_count, check_positive, reading
from recipes.serve.config import EngineConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """One group of devices that share one parallel configuration, and serve models in turns.

    group: its name, unique among the groups of a front door.
    devices: numbers in the cluster, one a rank; ``tp * pp`` of them. For people, and for
        whoever starts processes.
    tp, pp: ranks that share every layer of a model, and stages that share the layers.
    address: where the front door listens: path of a Unix socket, or ``host:port``.
    key: shared secret that both sides prove to know, hexadecimal.
    device: ``cpu`` or ``cuda``. num_threads: of every rank, on the CPU.
    memory_bytes: of each device; models that would need more are not loaded. None: not counted.
    token_budget, max_num_seqs, block_size, max_waiting, dtype, kv_dtype: of every model's engine,
        see ``EngineConfig``.
    max_model_len: longest prompt plus output [tokens] where the model has no lower limit.
    pp_batches: batches of a model that is alone at work on their way through several stages; None:
        one a stage.
    turns: which model's engine takes the next step: the one whose most urgent token is due first,
        or the one that has waited longest.
    heartbeat_s: longest the group is silent. step_timeout_s: longest a step may take.
    step_log: file that a line is added to for every step, see ``StepLog``; empty for none.
    """

    group: str
    devices: tuple[int, ...] = (0,)
    tp: int = 1
    pp: int = 1
    address: str = ""
    key: str = dataclasses.field(default="", repr=False)
    device: str = "cpu"
    num_threads: int = 1
    memory_bytes: int | None = None
    token_budget: int = 512
    max_num_seqs: int = 64
    block_size: int = 16
    max_model_len: int | None = None
    pp_batches: int | None = None
    max_waiting: int = 1024
    dtype: str | None = None
    kv_dtype: str = "auto"
    turns: Literal["due", "round"] = "due"
    heartbeat_s: float = 1.0
    step_timeout_s: float = 120.0
    step_log: str = ""

    def __post_init__(self) -> None:
        check(self.group != "", "group", "a name", repr(self.group))
        check(len(self.group) <= 200, "group", "at most 200 characters", len(self.group))
        check_count("num_threads", self.num_threads)
        check_positive("memory_bytes", self.memory_bytes)
        if self.pp_batches is not None:
            check_count("pp_batches", self.pp_batches)
        check(self.device in ("cpu", "cuda"), "device", "cpu or cuda", repr(self.device))
        check(self.turns in ("due", "round"), "turns", "due or round", repr(self.turns))
        fits = 0 < self.heartbeat_s < math.inf
        check(fits, "heartbeat_s", "more than 0 seconds, finite", self.heartbeat_s)
        self.engine_config(0)
        ranks = self.tp * self.pp
        check(len(self.devices) == ranks, "devices", f"tp * pp = {ranks}", len(self.devices))

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp

    @property
    def depth(self) -> int:
        """Batches of a model that may be under way at a time."""
        return 1 if self.pp == 1 else self.pp_batches or self.pp

    def engine_config(
        self, kv_bytes: int, max_positions: int | None = None, device: str | None = None
    ) -> EngineConfig:
        """The settings of a model's engine.

        Args:
            kv_bytes: memory for keys and values, of each rank.
            max_positions: the model's own limit.
        """
        limits = [limit for limit in (self.max_model_len, max_positions) if limit is not None]
        return EngineConfig(
            kv_bytes=kv_bytes or None,
            max_model_len=min(limits, default=None),
            max_num_seqs=self.max_num_seqs,
            token_budget=self.token_budget,
            block_size=self.block_size,
            max_waiting=self.max_waiting,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            device=device or self.device,
            tp=self.tp,
            pp=self.pp,
            pp_batches=self.depth if self.pp > 1 else None,
            step_timeout=self.step_timeout_s,
        )

    def to_json(self) -> str:
        """As text; ``from_json`` reads it back. It holds the key: hand it on in private."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "GroupSpec":
        """
        Raises:
            ValueError: text that is no such record.
        """
        data = json.loads(text)
        with reading("group spec", data, cls):
            return cls(**{**data, "devices": tuple(data["devices"])})
