"""What a run is: one frozen record. Presets are in ``presets``, ``key=value`` in ``settings``."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from blocks._checks import check, check_positive, reading


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, whole.

    Text:
    corpus: file or folder of text; None takes the standard library of the running Python.
    max_corpus_bytes: cap on the training text, files taken in hash order; None takes all.
    held_out_share: share of files (by hash of their path) kept for validation.
    chat_share: share of the rows filled with docstring questions and answers, [0, 1).
    vocab_size: entries of the byte-level BPE, control tokens included.
    context_len: tokens per row. batch_size: rows per step, over all processes.

    Model:
    hidden_size, num_layers, num_heads, num_kv_heads, intermediate_size: the Llama-style decoder.
    tie_embeddings: whether the head is the embedding. window: most recent positions a query sees.
    document_mask: whether a token sees its own document only (documents end at the end token).

    Steps:
    num_steps: optimizer steps of the whole run; the learning rate ends its schedule there.
    optimizer: "adamw", or "muon" (matrices by Muon, the rest by AdamW).
    learning_rate: peak, reached after warmup_steps; min_lr_share: what is left of it at the end.
    rate_schedule: "cosine", "linear", or "wsd" (level, then linear over the last decay_share).
    weight_decay: decoupled, on matrices only. clip_norm: largest global gradient norm.
    dtype: of forward and backward; parameters, sums of gradients and optimizer state stay float32.
        "auto" takes bfloat16 where the processor multiplies it natively, else float32.
    compile: torch.compile the layers (worth its minute of compilation in long runs only).
    recompute: run forwards again before their backwards instead of keeping activations.
    num_threads: torch threads; None leaves torch's choice. Part of what makes a resume exact.

    What the numbers are made of (together with all of the above):
    microbatch: rows that go through the model together; None: what fits the layout.
    slices: token slices a row is cut into, of nearly equal lengths, or where ``cuts`` says, like
        "0,200,256" (the end included), which says their number too.
    lanes: parts of the batch whose gradients are summed apart and then as a tree; None: dp.

    Where it runs (changes no bit while ``canonical``, but for device and tp):
    device: "cpu" or "cuda".
    dp, pp, tp: data-parallel replicas, pipeline ranks, tensor-parallel ranks.
    fsdp: the replicas share parameters and optimizer state among them, whole only during a step.
    schedule: a name of ``blocks.pipeline.SCHEDULES``, or "auto". chunks: stages a rank.
    layers_per_stage: like "3,5"; None spreads them evenly.
    canonical: add gradients up in one order on any layout; false is a plain all-reduce.
    plan: file written by the ``plan`` verb, which decides pp, chunks, cuts and the schedule.

    What is written:
    log_every, eval_every, checkpoint_every: in steps; the last step does all three.
    eval_tokens: held-out tokens looked at during training (the last look takes all).
    keep_checkpoints: how many are kept, at least 2 so that one may be damaged.
    tensorboard: write the log for TensorBoard too, to ``tensorboard/`` in the run's folder.
    profile, trace: steps "a:b" in which torch's profiler or the pipeline's trace is written.
    """

    corpus: str | None = None
    max_corpus_bytes: int | None = None
    held_out_share: float = 0.03
    chat_share: float = 0.0
    vocab_size: int = 4096
    context_len: int = 512
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 688
    tie_embeddings: bool = True
    window: int | None = None
    document_mask: bool = False
    batch_size: int = 8
    num_steps: int = 1000
    optimizer: str = "muon"
    learning_rate: float = 4e-3
    min_lr_share: float = 0.05
    warmup_steps: int = 50
    rate_schedule: str = "cosine"
    decay_share: float = 0.2
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0
    dtype: str = "bfloat16"
    compile: bool = False
    recompute: bool = False
    num_threads: int | None = None
    microbatch: int | None = None
    slices: int = 1
    cuts: str | None = None
    lanes: int | None = None
    device: str = "cpu"
    dp: int = 1
    pp: int = 1
    tp: int = 1
    fsdp: bool = False
    schedule: str = "auto"
    chunks: int = 1
    layers_per_stage: str | None = None
    canonical: bool = True
    plan: str | None = None
    log_every: int = 10
    eval_every: int = 200
    eval_tokens: int = 32_768
    checkpoint_every: int = 200
    keep_checkpoints: int = 3
    tensorboard: bool = False
    profile: str | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_kind(field, getattr(self, field.name))
        for name in _POSITIVE:
            check_positive(name, getattr(self, name))
        check(self.context_len >= 2, "context_len", "at least 2 tokens", self.context_len)
        check(self.seed >= 0, "seed", "at least 0", self.seed)
        rate, decay, floor = self.learning_rate, self.weight_decay, self.min_lr_share
        check(math.isfinite(rate), "learning_rate", "a finite number", rate)
        check(0 <= decay < math.inf, "weight_decay", "a finite number of at least 0", decay)
        check(0 <= floor <= 1, "min_lr_share", "a share in [0, 1]", floor)
        check(0 <= self.chat_share < 1, "chat_share", "a share in [0, 1)", self.chat_share)
        check(0 < self.held_out_share < 1, "held_out_share", "in (0, 1)", self.held_out_share)
        check(0 < self.decay_share <= 1, "decay_share", "a share in (0, 1]", self.decay_share)
        check(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        check(self.vocab_size >= 300, "vocab_size", "at least 300 (256 bytes)", self.vocab_size)
        check(self.keep_checkpoints >= 2, "keep_checkpoints", "at least 2", self.keep_checkpoints)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            check(value in allowed, name, " or ".join(allowed), repr(value))
        heads, kv_heads = self.num_heads, self.num_kv_heads
        check(heads % kv_heads == 0, "num_heads", f"a multiple of num_kv_heads ({kv_heads})", heads)
        expected = f"a multiple of 2 * num_heads ({2 * heads})"
        check(self.hidden_size % (2 * heads) == 0, "hidden_size", expected, self.hidden_size)
        for name in ("profile", "trace"):
            text, steps = getattr(self, name), self.num_steps
            inside = step_window(name, text).stop <= steps
            check(inside, name, f"steps of the run, up to num_steps ({steps})", repr(text))

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_len

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "TrainConfig":
        """The config of ``to_json``; settings that an older version did not have are the default.

        Raises:
            ValueError: data that is no config, or one with settings this version does not know.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = isinstance(data, Mapping) and set(data) <= names
        got = sorted(set(data) - names) if isinstance(data, Mapping) else type(data).__name__
        hint = "written by another version, or another program"
        check(known, "config", "settings of recipes.train", got, hint)
        with reading("config", data, data):
            return cls(**data)


_POSITIVE = (
    *("max_corpus_bytes", "context_len", "hidden_size", "num_layers", "num_heads", "num_kv_heads"),
    *("intermediate_size", "window", "batch_size", "num_steps", "learning_rate", "clip_norm"),
    *("num_threads", "microbatch", "slices", "lanes", "dp", "pp", "tp", "chunks"),
    *("log_every", "eval_every", "eval_tokens", "checkpoint_every"),
)
_CHOICES = {
    "optimizer": ("adamw", "muon"),
    "device": ("cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "rate_schedule": ("cosine", "wsd", "linear"),
}


def _check_kind(field: dataclasses.Field[Any], value: object) -> None:
    kinds: Any = field.type.__args__ if isinstance(field.type, UnionType) else (field.type,)
    ok = any(
        isinstance(value, float | int if kind is float else kind)
        and (kind is bool or not isinstance(value, bool))
        for kind in kinds
    )
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    check(ok, field.name, names, repr(value))


def step_window(name: str, text: str | None) -> range:
    """The steps of a text like "10:12" (10 and 11); none for None.

    >>> step_window("profile", "10:12")
    range(10, 12)
    """
    if text is None:
        return range(0)
    first, colon, stop = text.partition(":")
    ok = bool(colon) and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)
    check(ok, name, "steps like 10:12, the last one left out", repr(text))
    return range(int(first), int(stop))


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with "auto" and what depends on the layout decided for this machine."""
    changes: dict[str, Any] = {"lanes": config.lanes or config.dp}
    if config.dtype == "auto":
        native = config.device == "cuda" or _native_bfloat16()
        changes["dtype"] = "bfloat16" if native else "float32"
    if config.cuts is not None and config.slices == 1:
        changes["slices"] = max(1, config.cuts.count(","))
    config = dataclasses.replace(config, **changes)
    lanes = changes["lanes"]
    if config.microbatch is not None or config.batch_size % lanes:
        return config
    rows = _fitting_rows(config, config.batch_size // lanes)
    return dataclasses.replace(config, microbatch=rows)


def _fitting_rows(config: TrainConfig, lane_rows: int) -> int:
    """All rows of a lane at once on one rank; enough units to fill a pipeline on several."""
    if config.pp == 1:
        return lane_rows
    wanted = 4 * config.pp * config.chunks
    fitting = (d for d in range(lane_rows, 0, -1) if lane_rows % d == 0)
    return next((d for d in fitting if lane_rows // d * config.slices >= wanted), 1)


def _native_bfloat16() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
