"""The training run: data in, steps, looks at held-out text, checkpoints, a model folder out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from blocks._checks import check, fail
from recipes.train.checkpoint import (
    Checkpoint,
    StoredCheckpoint,
    list_checkpoints,
    load_latest,
    save_checkpoint,
)
from recipes.train.config import TrainConfig, resolve
from recipes.train.evaluate import HeldOut, evaluate
from recipes.train.log import JsonLog, LogEntry, plot_log, read_log
from recipes.train.model import build_decoder, export_model, make_loss
from recipes.train.optim import build_optimizers, learning_rate
from recipes.train.prepare import Prepared, prepare
from recipes.train.tokenizer import tokenizer_tensor

MAX_SKIPPED_IN_A_ROW = 25
EVAL_TOKENS_AT_ONCE = 4096


class TrainingDiverged(RuntimeError):
    """Gradients or parameters are not finite and stay so; nothing of it was saved."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    entries: the log. held_out: the last look, over all held-out text. seconds: of this call.
    model: folder in Hugging Face form. plot: the loss curve, None without matplotlib.
    """

    config: TrainConfig
    entries: tuple[LogEntry, ...]
    held_out: HeldOut
    num_tokens: int
    num_skipped_steps: int
    seconds: float
    model: Path
    plot: Path | None


class Trainer:
    """A model, its optimizers, and how far they are.

    Invariants:
        1. ``step`` optimizer steps are done, skipped ones counted in.
        2. What the next step computes depends on ``state_tensors()``, ``step`` and the prepared
           data only.
        3. Every parameter is finite.
    """

    def __init__(self, config: TrainConfig, data: Prepared) -> None:
        self.config, self.data = config, data
        self.decoder = build_decoder(config, data.tokenizer)
        self.loss_sum = make_loss(self.decoder, config)
        self.optimizers = build_optimizers(self.decoder, config)
        self.step = 0
        self.num_skipped_steps = 0
        self.skipped_in_a_row = 0
        self.losses: list[float] = []  # since the last log entry
        self.grad_norm = 0.0

    def train_step(self) -> None:
        """One batch, one update; a gradient that is not finite is counted and not applied.

        Raises:
            TrainingDiverged: after many such steps in a row.
        """
        batch = self.data.batches.batch(self.step)
        num_labels = int((batch.labels >= 0).sum())
        self.decoder.zero_grad(set_to_none=True)
        loss = self.loss_sum(batch.inputs, batch.labels) / max(1, num_labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.config.clip_norm)
        self.grad_norm = norm.item()
        if math.isfinite(self.grad_norm):
            self._update(learning_rate(self.step, self.config))
            self.losses.append(loss.item())
            self.skipped_in_a_row = 0
        else:
            self.num_skipped_steps += 1
            self.skipped_in_a_row += 1
        self.step += 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"gradient: expected finite numbers, got none in the {self.skipped_in_a_row} steps "
                f"up to {self.step}; lower learning_rate or raise warmup_steps, then resume"
            )

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def evaluate(self, max_tokens: int | None) -> HeldOut:
        """Loss and bits per byte of held-out text."""
        return evaluate(
            self.loss_sum,
            self.data.held_out,
            self.data.token_bytes,
            context_len=self.config.context_len,
            batch_size=max(1, EVAL_TOKENS_AT_ONCE // self.config.context_len),
            max_tokens=max_tokens,
        )

    def checkpoint(self) -> Checkpoint:
        """Everything a later process needs to go on bit for bit.

        Raises:
            TrainingDiverged: a parameter is not finite, so this is not worth keeping.
        """
        tensors = self.state_tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingDiverged(f"{name}: expected finite values at step {self.step}")
        state = {
            "config": self.config.to_json(),
            "corpus_digest": self.data.corpus.digest,
            "num_skipped_steps": self.num_skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": self.losses,
            "torch": torch.__version__,
        }
        return Checkpoint(self.step, tensors, state)

    def restore(self, checkpoint: StoredCheckpoint) -> None:
        """Take over a checkpoint of the same run.

        Raises:
            ValueError: it belongs to another configuration or another text.
        """
        state = checkpoint.state
        digest = self.data.corpus.digest
        hint = "resume on the text the run began with"
        check(state["corpus_digest"] == digest, "corpus", state["corpus_digest"], digest, hint)
        check_same_run(TrainConfig(**state["config"]), self.config)
        with torch.no_grad():
            for name, tensor in self.decoder.state_dict().items():
                tensor.copy_(checkpoint.tensors[f"model.{name}"])
        for name, optimizer, parameter in self._optimized():
            prefix = f"optimizer.{name}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): tensor.clone()
                for key, tensor in checkpoint.tensors.items()
                if key.startswith(prefix)
            }
        torch.set_rng_state(checkpoint.tensors["rng.torch"])
        self.step = checkpoint.step
        self.num_skipped_steps = state["num_skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.losses = list(state["losses"])

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters, optimizer moments and generator state, by name."""
        tensors = {f"model.{name}": t for name, t in self.decoder.state_dict().items()}
        for name, optimizer, parameter in self._optimized():
            for key, tensor in optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = tensor
        tensors["rng.torch"] = torch.get_rng_state()
        tensors["tokenizer"] = tokenizer_tensor(self.data.tokenizer)
        return tensors

    def _optimized(self) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
        names = {id(parameter): name for name, parameter in self.decoder.named_parameters()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[id(parameter)], optimizer, parameter


# Settings that may change between the parts of one run without changing its numbers.
_FREE = {"keep_checkpoints", "checkpoint_every"}


def check_same_run(saved: TrainConfig, config: TrainConfig) -> None:
    """Refuse to go on with settings that would have given other numbers."""
    for field in dataclasses.fields(config):
        before, now = getattr(saved, field.name), getattr(config, field.name)
        if field.name not in _FREE and before != now:
            raise fail(field.name, repr(before), repr(now), "resume with the settings of the run")


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    resume: bool = False,
    on_log: Callable[[LogEntry], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainResult:
    """Run a training to its end and write the model to ``out/model``.

    Args:
        out: folder of the run: ``log.jsonl``, ``loss.png``, ``checkpoints/``, ``model/``.
        resume: go on from the newest intact checkpoint there; without one, start over.
        on_log: called with every log entry. on_note: called with what happens before the steps.

    Raises:
        ValueError: ``out`` holds another run, or settings that differ from those of the run
            resumed.
        TrainingDiverged: numbers that are not finite, for good.
    """
    out, config = Path(out), resolve(config)
    started = time.perf_counter()
    threads = torch.get_num_threads()
    note = on_note or (lambda text: None)
    if not resume and list_checkpoints(out / "checkpoints"):
        raise fail("out", "a folder without a run", str(out), "pass --resume or another folder")
    torch.set_num_threads(config.num_threads or threads)
    try:
        data = prepare(config, on_note=note)
        trainer = Trainer(config, data)
        checkpoint = load_latest(out / "checkpoints") if resume else None
        if checkpoint is not None:
            trainer.restore(checkpoint)
            note(f"resumed at step {trainer.step} of {config.num_steps}")
        elif resume:
            note(f"nothing to resume in {out}: starting at step 0")
        num_parameters = sum(p.numel() for p in trainer.decoder.parameters())
        note(f"model: {num_parameters:,} parameters, {torch.get_num_threads()} threads")
        out.mkdir(parents=True, exist_ok=True)
        log = JsonLog(out / "log.jsonl", after_step=trainer.step)
        _run(trainer, out, log, on_log or (lambda entry: None))
        entries = read_log(log.path)
        model = export_model(trainer.decoder, data.tokenizer, out / "model")
        title = f"{num_parameters / 1e6:.1f} M parameters, {data.corpus.source.split(',')[0]}"
        plot = out / "loss.png" if plot_log(entries, out / "loss.png", title) else None
    finally:
        torch.set_num_threads(threads)
    last = LogEntry(**entries[-1])
    assert last.held_out_loss is not None, "the last step looks at held-out text"
    assert last.bits_per_byte is not None, "the last step looks at held-out text"
    return TrainResult(
        config=config,
        entries=tuple(LogEntry(**entry) for entry in entries),
        held_out=HeldOut(last.held_out_loss, last.bits_per_byte),
        num_tokens=last.num_tokens,
        num_skipped_steps=trainer.num_skipped_steps,
        seconds=time.perf_counter() - started,
        model=model,
        plot=plot,
    )


def _run(trainer: Trainer, out: Path, log: JsonLog, on_log: Callable[[LogEntry], None]) -> None:
    """Steps to the end, with what is due after each."""
    config = trainer.config
    busy, first = 0.0, trainer.step  # seconds in steps and steps done, since the last entry
    pace = 0.0
    while trainer.step < config.num_steps:
        started = time.perf_counter()
        trainer.train_step()
        busy += time.perf_counter() - started
        step, last = trainer.step, trainer.step == config.num_steps
        looked = last or step % config.eval_every == 0
        if looked or step == 1 or step % config.log_every == 0:
            rate = (step - first) * config.tokens_per_step / busy
            pace = rate if pace == 0.0 or step <= 2 * config.log_every else 0.7 * pace + 0.3 * rate
            entry = _entry(trainer, rate, pace, looked, last)
            log.write(entry)
            on_log(entry)
            trainer.losses.clear()
            busy, first = 0.0, step
        if last or step % config.checkpoint_every == 0:
            save_checkpoint(out / "checkpoints", trainer.checkpoint(), keep=config.keep_checkpoints)


def _entry(trainer: Trainer, rate: float, pace: float, looked: bool, last: bool) -> LogEntry:
    config, step = trainer.config, trainer.step
    held_out = trainer.evaluate(None if last else config.eval_tokens) if looked else None
    losses = trainer.losses
    return LogEntry(
        step=step,
        num_steps=config.num_steps,
        loss=sum(losses) / len(losses) if losses else math.inf,
        held_out_loss=held_out.loss if held_out else None,
        bits_per_byte=held_out.bits_per_byte if held_out else None,
        learning_rate=learning_rate(step - 1, config),
        grad_norm=trainer.grad_norm,
        num_tokens=step * config.tokens_per_step,
        tokens_per_s=rate,
        num_skipped_steps=trainer.num_skipped_steps,
        eta_s=(config.num_steps - step) * config.tokens_per_step / pace,
    )
