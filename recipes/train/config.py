"""What a run is: one frozen record, three presets, and ``key=value`` overrides."""

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Any

from blocks._checks import check, check_positive, fail


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, whole.

    corpus: file or folder of text; None takes the standard library of the running Python.
    max_corpus_bytes: cap on the training text, files taken in hash order; None takes all.
    held_out_share: share of files (by hash of their path) kept for validation.
    chat_share: share of the rows filled with docstring questions and answers, [0, 1).
    vocab_size: entries of the byte-level BPE, control tokens included.
    context_len: tokens per row. batch_size: rows per step.
    hidden_size, num_layers, num_heads, num_kv_heads, intermediate_size: the Llama-style decoder.
    num_steps: optimizer steps of the whole run; the learning rate ends its cosine there.
    optimizer: "adamw", or "muon" (matrices by Muon, the rest by AdamW).
    learning_rate: peak, reached after warmup_steps; min_lr_share: what is left of it at the end.
    weight_decay: decoupled, on matrices only. clip_norm: largest global gradient norm.
    dtype: of forward and backward; parameters and optimizer state stay float32. "auto" takes
        bfloat16 where the processor multiplies it natively, else float32.
    compile: torch.compile the loss (worth its minute of compilation in long runs only).
    num_threads: torch threads; None leaves torch's choice. Part of what makes a resume exact.
    log_every, eval_every, checkpoint_every: in steps; the last step does all three.
    eval_tokens: held-out tokens looked at during training (the last look takes all).
    keep_checkpoints: how many are kept, at least 2 so that one may be damaged.
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
    batch_size: int = 8
    num_steps: int = 1000
    optimizer: str = "muon"
    learning_rate: float = 4e-3
    min_lr_share: float = 0.05
    warmup_steps: int = 50
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0
    dtype: str = "bfloat16"
    compile: bool = False
    num_threads: int | None = None
    log_every: int = 10
    eval_every: int = 200
    eval_tokens: int = 32_768
    checkpoint_every: int = 200
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            check_positive(name, getattr(self, name))
        check(0 <= self.chat_share < 1, "chat_share", "a share in [0, 1)", self.chat_share)
        check(0 < self.held_out_share < 1, "held_out_share", "in (0, 1)", self.held_out_share)
        check(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        check(self.vocab_size >= 300, "vocab_size", "at least 300 (256 bytes)", self.vocab_size)
        check(self.keep_checkpoints >= 2, "keep_checkpoints", "at least 2", self.keep_checkpoints)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            check(value in allowed, name, " or ".join(allowed), repr(value))
        check(
            self.num_heads % self.num_kv_heads == 0,
            "num_heads",
            f"a multiple of num_kv_heads ({self.num_kv_heads})",
            self.num_heads,
        )
        check(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            f"a multiple of 2 * num_heads ({2 * self.num_heads})",
            self.hidden_size,
        )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_len

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_POSITIVE = (
    "max_corpus_bytes",
    "context_len",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "batch_size",
    "num_steps",
    "learning_rate",
    "clip_norm",
    "num_threads",
    "log_every",
    "eval_every",
    "eval_tokens",
    "checkpoint_every",
)
_CHOICES = {"optimizer": ("adamw", "muon"), "dtype": ("auto", "float32", "bfloat16")}


def tiny() -> TrainConfig:
    """Seconds on a CPU; what the tests run."""
    return TrainConfig(
        max_corpus_bytes=200_000,
        vocab_size=512,
        context_len=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
        batch_size=4,
        num_steps=60,
        learning_rate=1e-2,
        warmup_steps=5,
        dtype="float32",
        num_threads=1,
        log_every=5,
        eval_every=30,
        eval_tokens=2048,
        checkpoint_every=20,
    )


def demo() -> TrainConfig:
    """About a minute on two idle CPU cores, from the text to a model that writes Python shapes."""
    return TrainConfig(
        max_corpus_bytes=3_000_000,
        vocab_size=2048,
        context_len=256,
        hidden_size=192,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=512,
        batch_size=8,
        num_steps=400,
        learning_rate=6e-3,
        warmup_steps=20,
        dtype="auto",
        num_threads=1,  # a second one gains little at this size and loses much on a busy machine
        eval_every=100,
        eval_tokens=16_384,
        checkpoint_every=200,
    )


def bundled() -> TrainConfig:
    """The run that made the model in ``recipes/model/bundled``."""
    return TrainConfig(
        chat_share=0.55,
        batch_size=4,
        num_steps=6000,
        learning_rate=6e-3,
        warmup_steps=100,
        compile=True,
        num_threads=1,
        log_every=20,
        eval_every=500,
        checkpoint_every=500,
    )


PRESETS = {"tiny": tiny, "demo": demo, "bundled": bundled}


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with "auto" decided for this machine."""
    if config.dtype != "auto":
        return config
    return dataclasses.replace(config, dtype="bfloat16" if _native_bfloat16() else "float32")


def _native_bfloat16() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def override(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """Apply ``key=value`` texts.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        check(bool(equals), "setting", "key=value", repr(setting))
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "see recipes/train/config.py"
            raise fail("setting", "a field of TrainConfig", repr(key), hint)
        changes[key] = _parse(key, value, fields[key].type)
    return dataclasses.replace(config, **changes)


def _parse(key: str, text: str, kind: Any) -> Any:
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() in ("none", ""):
        return None
    wanted = next(k for k in kinds if k is not type(None))
    if wanted is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise fail(key, "true or false", repr(text))
        return text.lower() in ("true", "1")
    try:
        return wanted(text.replace("_", "") if wanted in (int, float) else text)
    except ValueError:
        raise fail(key, f"a value of type {wanted.__name__}", repr(text)) from None
