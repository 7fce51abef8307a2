"""Train a small language model on text you have.

python -m recipes.train                                    # the demo preset, about a minute
python -m recipes.train --preset tiny num_steps=100 seed=7
python -m recipes.train depth=6 --corpus ~/my/texts --out out/mine
python -m recipes.train --corpus ~/my/texts --out out/mine --resume   # after an interruption
torchrun --nnodes=1:4 --max-restarts=9 -m recipes.train --elastic dp=4 lanes=4 --out out/mine
python -m recipes.train pp=2 slices=4                      # two processes, token slices
python -m recipes.train plan pp=2 --out out/plan.json      # measure, plan, and then
python -m recipes.train plan=out/plan.json                 # train by it

Other verbs: plan, simulate, replay, compare, export (each with --help).

Exit status: 0 done; 2 settings or files that do not fit, said in one line; 1 a run that failed (it
diverged, the disk is full, a process was lost); 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from blocks._checks import fail
from recipes.settings import described
from recipes.train import PRESETS, ProcessLost, TrainConfig, TrainingDiverged, override, train
from recipes.train.verbs import add_run_options, parser_of

VERBS = ("plan", "simulate", "replay", "compare", "export")
MISUSE = (
    ValueError,
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] and given[0] in VERBS:
            options = parser_of(given[0], configure).parse_intermixed_args(given[1:])
            options.work(options)
        else:
            run(given[1:] if given[:1] == ["train"] else given)
    except (*MISUSE, OSError, TrainingDiverged, ProcessLost) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, MISUSE) else 1
    except KeyboardInterrupt:
        print("interrupted; a run goes on with --resume", file=sys.stderr)
        return 130
    return 0


def configure(options: argparse.Namespace) -> TrainConfig:
    """The config that preset, corpus and settings make."""
    settings = list(options.settings)
    for name in ("corpus", "plan"):
        if (given := getattr(options, name)) is not None:
            settings.append(f"{name}={given}")
    return override(PRESETS[options.preset](), settings)


def _epilog() -> str:
    depth = "depth: layers, and every size that goes with so many; fields given by name win."
    return f"{described(PRESETS['demo'](), values='values of the demo preset')}\n\n{depth}"


def run(given: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m recipes.train",
        description=__doc__,
        epilog=_epilog() if {"-h", "--help"} & {*given} else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--max-restarts", type=int, default=0, help="start all processes again when one is lost"
    )
    parser.add_argument(
        "--elastic", action="store_true", help="resume on as many processes as torchrun started"
    )
    options = parser.parse_intermixed_args(given)
    for verb in {*VERBS} & {*options.settings}:
        raise fail("verb", "it before everything else", f"{verb!r} behind {given[0]}")
    result = train(
        configure(options),
        out=options.out or Path("out") / f"train-{options.preset}",
        resume=options.resume,
        elastic=options.elastic,
        max_restarts=options.max_restarts,
        on_log=lambda entry: print(entry.line(), flush=True),
        on_note=lambda text: print(text, flush=True),
    )
    if os.environ.get("RANK", "0") != "0":
        return  # the first of torchrun's processes says it
    first, last = result.entries[0], result.entries[-1]
    print(
        f"loss {first.loss:.3f} -> {last.loss:.3f}, held-out {result.held_out.loss:.3f} "
        f"({result.held_out.bits_per_byte:.3f} bits/byte), {result.num_tokens / 1e6:.2f} M tokens "
        f"in {result.seconds:.0f} s\nmodel: {result.model}\nplot: {result.plot or 'needs [viz]'}"
    )


if __name__ == "__main__":
    sys.exit(main())
