"""What ``python -m recipes.train`` does beside training: plan, simulate, replay and so on."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from blocks._checks import check, check_positive
from blocks.pipeline import MemorySizes, Trace, compare, plan_pipeline, read_traces, replay
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.view import figure, to_html, to_perfetto, to_svg
from blocks.pipeline.view.scale import bytes_text
from blocks.pipeline.view.sliders import sliders_of
from recipes.plan.config import PlanConfig
from recipes.settings import add_settings
from recipes.train.calibrate import calibrate, held_bytes
from recipes.train.config import TrainConfig, resolve
from recipes.train.export import DTYPES, export_checkpoint
from recipes.train.layout import check_layout
from recipes.train.model import model_config
from recipes.train.plan_file import SIZES, PlanFile
from recipes.train.planned import DECIDED as PLAN_DECIDES
from recipes.train.planned import check_plannable
from recipes.train.prepare import read_text
from recipes.train.presets import PRESETS

DECIDED = ("slices", "cuts", "schedule", "recompute", "plan")
"""Settings that a plan decides, so it cannot be made with them."""

RUN_DECIDES = ("model", "cluster", "batch_size", "seq_len", "dtype", "optimizer")
"""What a parallel plan is asked for by the settings of its run."""


def plan(config: TrainConfig, out: Path, max_sequences: float | None) -> None:
    """Measure what slices cost here, plan a step, write the plan and print why it is so."""
    check(config.pp > 1, "pp", "2 or more", config.pp, "a plan orders pipeline ranks")
    check(config.tp == 1, "tp", 1, config.tp, "slices of whole layers are measured")
    check_positive("max_sequences", max_sequences)
    for field in dataclasses.fields(config):
        if field.name in DECIDED:
            given = getattr(config, field.name)
            check(given == field.default, field.name, "none", repr(given), "the plan decides it")
    config = resolve(config)
    check_layout(config)
    text = read_text(config, lambda note: print(note, flush=True))
    print("measuring slices of every stage", flush=True)
    model = model_config(config, text.tokenizer)
    costs, held = calibrate(config, model), held_bytes(config, model)
    length = config.context_len
    for rank, cost in enumerate(costs):
        assert cost.residual is not None, "fitted"
        error, worst = cost.residual.rms_relative, cost.residual.max_relative
        print(
            f"rank {rank}: costs fitted within {error:.0%} RMS, {worst:.0%} at worst; "
            f"a microbatch of whole rows holds {bytes_text(held[rank] * length)}"
        )
    assert config.microbatch is not None, "resolved"
    found = plan_pipeline(
        costs,
        length,
        config.batch_size // config.dp // config.microbatch,
        config.pp,
        sizes=MemorySizes(activations=lambda rank, num_tokens, start: held[rank] * num_tokens),
        memory_cap=None if max_sequences is None else max_sequences * length * max(held),
        num_chunks=(config.chunks,),
        split_weights=(False,),
    )
    sizes = {name: getattr(config, name) for name in SIZES}
    PlanFile(found, tuple(costs), sizes).write(out)
    print(f"{found.explanation}\nplan: {out}")


def plan_parallel(config: TrainConfig, cluster: str, asked: Sequence[str], out: Path) -> None:
    """Plan stages, meshes and placements of the run on a cluster, write the plan and print it.

    Args:
        asked: further settings of the plan, ``key=value`` of ``PlanConfig``.

    Raises:
        ValueError: settings that the plan decides, or asked ones that the run does.
    """
    from recipes.plan.families.decoder_sizes import decoder_size
    from recipes.plan.settings import override
    from recipes.plan.verbs import plan as search_and_write

    check_plannable(config)
    default = TrainConfig()
    for name in (*PLAN_DECIDES, "microbatch", "lanes", "plan"):
        given, free = getattr(config, name), getattr(default, name)
        check(given == free, name, repr(free), repr(given), "the plan decides it")
    for setting in asked:
        name, hint = setting.partition("=")[0], "give it to the run, without --ask"
        check(name not in RUN_DECIDES, "ask", "what the run does not say", repr(setting), hint)
    text = read_text(config, lambda note: print(note, flush=True))
    model = f"decoder:{decoder_size(model_config(config, text.tokenizer))}"
    request = PlanConfig(
        model,
        cluster,
        batch_size=config.batch_size,
        seq_len=config.context_len,
        dtype=resolve(config).dtype,
        gradient_dtype="float32",
        optimizer=config.optimizer,
    )
    search_and_write(override(request, asked), out)


def simulate(path: Path, out: Path) -> None:
    """Draw the step a plan foresees."""
    _check_ending(out, ".html", ".svg")
    file = PlanFile.read(path)
    shown = figure(file.timeline(), unit="s", title=f"plan {path.name}")
    _write(out, to_svg(shown) if out.suffix == ".svg" else to_html(shown))


def replay_run(run: Path, out: Path | None, step: int | None) -> None:
    """Simulate a traced step with its own durations; draw both."""
    if out is not None:
        _check_ending(out, ".html", ".svg", ".json")
    trace = traced_step(run, step)
    found = replay(trace)
    print(f"step {trace.meta.get('step')}: {found}")
    if out is None:
        return
    if out.suffix == ".json":
        _write(out, to_perfetto(trace))
        return
    shown = figure(found.replayed, trace, plan_title="replayed (simulated)")
    if out.suffix == ".svg":
        _write(out, to_svg(shown))
    else:
        _write(out, to_html(shown, sliders=sliders_of(trace, SCHEDULES), trace=trace))


def compare_runs(first: Path, second: Path, step: int | None) -> None:
    """Two runs' traced steps side by side: times, losses, digests."""
    print(compare(traced_step(first, step), traced_step(second, step)))


def export(checkpoint: Path, out: Path, dtype: str) -> None:
    """Write a Hugging Face folder of a checkpoint, or of a run's newest one."""
    print(f"model: {export_checkpoint(checkpoint, out, dtype=dtype)}")


def traced_step(run: Path, step: int | None) -> Trace:
    """A traced step of a run's first replica; the last one for None.

    Args:
        run: a run's folder, or one of traces.

    Raises:
        ValueError: no traces there, or none of that step.
    """
    folder = run / "trace" / "replica-0" if (run / "trace").is_dir() else run
    files = sorted(folder.glob("step-*-rank-*.jsonl"))
    hint = "train with trace=a:b first"
    check(bool(files), "traces", f"files step-*-rank-*.jsonl in {folder}", "none", hint)
    traces = read_traces(*files)
    known = [trace.meta.get("step") for trace in traces]
    wanted = known[-1] if step is None else step
    check(wanted in known, "step", f"one of {known}", wanted)
    return traces[known.index(wanted)]


def _check_ending(path: Path, *endings: str) -> None:
    check(path.suffix in endings, "out", f"a name that ends in {' or '.join(endings)}", path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")


WORDS = {
    "plan": "Measure slices on this machine, and choose slices, order and memory of a pipeline by "
    "them; with --cluster, plan stages, meshes and placements for it instead (recipes.plan).",
    "simulate": "Draw the step that a plan foresees: who computes what when.",
    "replay": "Simulate a traced step with its own durations, and draw both: what was lost where.",
    "compare": "What the traced steps of two runs did otherwise.",
    "export": "Write the weights of a checkpoint as a folder that recipes.serve loads.",
}
"""What verbs do."""


def parser_of(
    verb: str, configure: Callable[[argparse.Namespace], TrainConfig]
) -> argparse.ArgumentParser:
    """The parser of a verb and what to call with its options."""
    parser = argparse.ArgumentParser(f"python -m recipes.train {verb}", description=WORDS[verb])
    if verb == "plan":
        add_run_options(parser)
        parser.add_argument(
            "--max-sequences",
            type=float,
            help="most a rank may hold, in microbatches of whole rows on the rank that holds most",
        )
        parser.add_argument("--cluster", help="plan stages, meshes and placements for this one")
        parser.add_argument(
            "--ask",
            action="append",
            default=[],
            metavar="key=value",
            help="with --cluster: a field of recipes.plan's PlanConfig, such as num_devices=4",
        )
        parser.set_defaults(work=lambda o: _plan(configure(o), o))
    elif verb == "simulate":
        parser.add_argument("plan", type=Path, help="file written by the plan verb")
        parser.add_argument("--out", type=Path, default=Path("out/plan.html"), help=".html or .svg")
        parser.set_defaults(work=lambda o: simulate(o.plan, o.out))
    elif verb == "replay":
        parser.add_argument("run", type=Path, help="folder of a run with trace=a:b")
        parser.add_argument("--out", type=Path, help=".html, .svg, or .json for Perfetto")
        parser.add_argument("--step", type=int, help="default: the last one traced")
        parser.set_defaults(work=lambda o: replay_run(o.run, o.out, o.step))
    elif verb == "compare":
        parser.add_argument("first", type=Path, help="folder of a run with trace=a:b")
        parser.add_argument("second", type=Path, help="another one")
        parser.add_argument("--step", type=int, help="default: the last one traced")
        parser.set_defaults(work=lambda o: compare_runs(o.first, o.second, o.step))
    else:
        assert verb == "export", verb
        parser.add_argument("checkpoint", type=Path, help="a run's folder or one checkpoint")
        parser.add_argument("--out", type=Path, required=True, help="folder to write")
        parser.add_argument(
            "--dtype",
            choices=sorted(DTYPES),
            default="bfloat16",
            help="of the weights there; float32 keeps every bit, default bfloat16",
        )
        parser.set_defaults(work=lambda o: export(o.checkpoint, o.out, o.dtype))
    return parser


def _plan(config: TrainConfig, options: argparse.Namespace) -> None:
    out = options.out or Path("out/plan.json")
    if options.cluster is None:
        check(not options.ask, "ask", "none without --cluster", options.ask)
        plan(config, out, options.max_sequences)
    else:
        given, hint = options.max_sequences, "memory_gib= is the planner's limit"
        check(given is None, "max_sequences", "none with --cluster", given, hint)
        plan_parallel(config, options.cluster, options.ask, out)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What says which run is meant."""
    add_settings(parser, "fields of TrainConfig, which python -m recipes.train --help lists")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--corpus", help="file or folder of text; default: the standard library")
    parser.add_argument("--plan", help="file of the plan verb, or of recipes.plan")
    parser.add_argument("--out", type=Path, help="of a run: its folder, default out/train-PRESET")
