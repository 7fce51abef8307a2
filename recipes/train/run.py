"""``train``: a whole run, from text to a model folder."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from blocks._checks import check, fail
from blocks.pipeline import check_schedule
from recipes.plan.this_machine import check_here
from recipes.train.checkpoint import (
    CheckpointWriter,
    list_checkpoints,
    load_latest,
    read_state,
)
from recipes.train.claim import claim_together
from recipes.train.config import TrainConfig, resolve
from recipes.train.elastic import fit_world, restart_count, world_size
from recipes.train.evaluate import HeldOut
from recipes.train.export import export_checkpoint
from recipes.train.launch import in_workers, launch
from recipes.train.layout import check_layout, layout_of
from recipes.train.log import JsonLog, Log, LogEntry, plot_log, read_log, rounded
from recipes.train.meter import peak_memory_bytes
from recipes.train.order import build_schedule, row_bounds
from recipes.train.pace import Pace
from recipes.train.place import Place
from recipes.train.plan_file import follow
from recipes.train.planned import follow_plan, parallel_plan
from recipes.train.prepare import Prepared, prepare_together
from recipes.train.rate import learning_rate
from recipes.train.same_run import as_before, check_same_run
from recipes.train.tensorboard import TensorBoardLog
from recipes.train.trainer import Trainer
from recipes.train.windows import StepWindows

OnLog = Callable[[LogEntry], None]
OnNote = Callable[[str], None]


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


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    resume: bool = False,
    elastic: bool = False,
    max_restarts: int = 0,
    on_log: OnLog | None = None,
    on_note: OnNote | None = None,
) -> TrainResult:
    """Run a training to its end and write the model to ``out/model``.

    A config of several processes starts them on this machine (they import the calling script, so
    call this under ``if __name__ == "__main__":``); under torchrun, where they run already, every
    one of them calls this and gets the result.

    Args:
        out: folder of the run: ``log.jsonl``, ``loss.png``, ``checkpoints/``, ``model/``; on a
            disk that all processes see.
        resume: go on from the newest intact checkpoint there; without one, start over. Processes
            that torchrun starts again after a failure always do.
        elastic: resume, on as many processes as torchrun has started, see ``fit_world``.
        max_restarts: how often processes started here are started again after a failure.
        on_log: called with every log entry. on_note: called with what happens before the steps.
            Under torchrun, on rank 0 only.

    Raises:
        ValueError: settings that do not fit together (before any process starts), ``out`` holds
            another run, or settings that differ from those of the run resumed.
        TrainingDiverged: numbers that are not finite, for good.
        ProcessLost: a process started here was killed, once more than ``max_restarts``.
    """
    out, started = Path(out), time.perf_counter()
    if out.exists() and not out.is_dir():
        raise fail("out", "a folder", f"the file {out}")
    resume = resume or elastic or restart_count() > 0
    if not resume and list_checkpoints(out / "checkpoints"):
        raise fail("out", "a folder without a run", str(out), "pass --resume or another folder")
    config = _settle(config, out if resume else None, world_size() if elastic else None)
    starts = layout_of(config).num_ranks > 1 and not in_workers()
    _check_processes(config, max_restarts, starts)
    if starts:
        launch(run, (config, out, resume), config, on_log, on_note, max_restarts)
    else:
        run(config, out, resume, on_log, on_note)
    return _result(config, out, time.perf_counter() - started)


def _check_processes(config: TrainConfig, max_restarts: int, starts: bool) -> None:
    check(max_restarts >= 0, "max_restarts", "at least 0", max_restarts)
    hint = "only processes started here are started again; torchrun has its own --max-restarts"
    check(starts or not max_restarts, "max_restarts", 0, max_restarts, hint)
    got, wanted = world_size() if in_workers() else None, layout_of(config).num_ranks
    hint = "pass dp=, pp= and tp= of that product, or --elastic"
    expected = f"dp * pp * tp = {wanted}"
    plan = parallel_plan(config)
    if plan is not None and starts:
        check_here(plan)
    if plan is not None:
        expected, hint = f"{wanted}, the plan's devices", "start as many, or plan again for these"
    check(got in (None, wanted), "processes", expected, got, hint)


def run(
    config: TrainConfig, out: Path, resume: bool, on_log: OnLog | None, on_note: OnNote | None
) -> None:
    """What one process does of a run; ``config`` is settled."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or threads)
    resume = resume or restart_count() > 0
    try:
        with Place.join(layout_of(config), config.device) as place, claim_together(out, place):
            tell = on_note if place.is_first and on_note else (lambda text: None)
            log = on_log if place.is_first and on_log else (lambda entry: None)
            _run_here(config, out, resume, log, tell, place)
    finally:
        torch.set_num_threads(threads)


def _run_here(
    config: TrainConfig, out: Path, resume: bool, on_log: OnLog, on_note: OnNote, place: Place
) -> None:
    data = prepare_together(config, place, on_note)
    trainer = _make_trainer(config, data, place)
    ranks = place.ranks()
    checkpoint = load_latest(out / "checkpoints", ranks=ranks) if resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
        on_note(f"resumed at step {trainer.step} of {config.num_steps}")
    elif resume:
        on_note(f"nothing to resume in {out}: starting at step 0")
    num_parameters = trainer.replica.num_parameters
    where = "" if place.alone else f"{place.layout.num_ranks} processes, "
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' * (threads > 1)}"
    on_note(f"model: {num_parameters:,} parameters, {where}{counted}")
    logs = _open_logs(config, out, trainer.step) if place.is_first else []
    with CheckpointWriter(out / "checkpoints", keep=config.keep_checkpoints, ranks=ranks) as writer:
        _steps(trainer, out, writer, logs, on_log)
    if not place.is_first:
        return
    export_checkpoint(out / "checkpoints", out / "model", dtype="bfloat16")
    source = data.corpus.source.split(",")[0]
    title = f"{rounded(num_parameters)} parameters, {source}"
    plot_log(read_log(out / "log.jsonl"), out / "loss.png", title)


def _make_trainer(config: TrainConfig, data: Prepared, place: Place) -> Trainer:
    """One that follows the config's parallel plan, or one without a plan."""
    if parallel_plan(config) is None:
        return Trainer(config, data, place=place)
    from recipes.train.planned_trainer import PlannedTrainer  # tracing: a second to import

    return PlannedTrainer(config, data, place=place)


def _open_logs(config: TrainConfig, out: Path, after_step: int) -> list[Log]:
    logs: list[Log] = [JsonLog(out / "log.jsonl", after_step=after_step)]
    if config.tensorboard:
        logs.append(TensorBoardLog(out / "tensorboard", after_step=after_step))
    return logs


def _steps(
    trainer: Trainer, out: Path, writer: CheckpointWriter, logs: Sequence[Log], on_log: OnLog
) -> None:
    """Steps to the end, with what is due after each."""
    config, watch = trainer.config, StepWindows(trainer, out)
    pace = Pace(trainer)
    while trainer.step < config.num_steps:
        with watch.around(trainer.step), pace.timed():
            trainer.train_step()
        step, last = trainer.step, trainer.step == config.num_steps
        looked = last or step % config.eval_every == 0
        if looked or step == 1 or step % config.log_every == 0:
            entry = _entry(trainer, pace, looked, last)
            for log in logs:
                log.write(entry)
            on_log(entry)
            trainer.losses.clear()
        if last or step % config.checkpoint_every == 0:
            writer.save(trainer.checkpoint())


def _entry(trainer: Trainer, pace: Pace, looked: bool, last: bool) -> LogEntry:
    config, step = trainer.config, trainer.step
    rate = pace.tokens_per_s()
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
        eta_s=(config.num_steps - step) * config.tokens_per_step / pace.smooth,
        mfu=pace.mfu(rate),
        memory_bytes=int(trainer.place.largest(peak_memory_bytes(config.device))),
    )


def _settle(config: TrainConfig, resumed: Path | None, num_ranks: int | None) -> TrainConfig:
    """The config with nothing left open, as the run resumed settled it, and found to fit."""
    saved = read_state(resumed / "checkpoints") if resumed is not None else None
    before = None if saved is None else TrainConfig.from_json(saved.get("config"))
    if before is not None:
        config = as_before(config, before)
    if num_ranks is not None:
        config = fit_world(config, num_ranks)
    plan = parallel_plan(config)
    config = resolve(follow(config) if plan is None else follow_plan(config, plan))
    if before is not None:
        check_same_run(before, config)
    check_layout(config)
    row_bounds(config)
    check_schedule(build_schedule(config))
    return config


def _result(config: TrainConfig, out: Path, seconds: float) -> TrainResult:
    """What the files of a finished run say."""
    entries = tuple(LogEntry(**entry) for entry in read_log(out / "log.jsonl"))
    hint = f"it is lost; the run is done and its model is in {out / 'model'}"
    check(bool(entries), "log.jsonl", "the log of a finished run", "none", hint)
    last = entries[-1]
    plot = out / "loss.png"
    return TrainResult(
        config=config,
        entries=entries,
        held_out=HeldOut(_number(last.held_out_loss), _number(last.bits_per_byte)),
        num_tokens=last.num_tokens,
        num_skipped_steps=last.num_skipped_steps,
        seconds=seconds,
        model=out / "model",
        plot=plot if plot.exists() else None,
    )


def _number(seen: float | None) -> float:
    """What the last step saw of held-out text; the log has null for what is not finite."""
    return math.nan if seen is None else seen
