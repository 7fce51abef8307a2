"""Train a small language model on text you have.

python -m recipes.train                                    # the demo preset, about a minute
python -m recipes.train --preset tiny num_steps=100 seed=7
python -m recipes.train --corpus ~/my/texts --out out/mine
python -m recipes.train --corpus ~/my/texts --out out/mine --resume   # after an interruption
torchrun --nnodes=1:4 --max-restarts=9 -m recipes.train --elastic dp=4 lanes=4 --out out/mine
"""

import argparse
import sys
from pathlib import Path

from recipes.train import PRESETS, TrainingDiverged, override, train


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of TrainConfig")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--corpus", help="file or folder of text; default: the standard library")
    parser.add_argument("--out", type=Path, help="folder of the run; default: out/train-PRESET")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--max-restarts", type=int, default=0, help="start all processes again when one is lost"
    )
    parser.add_argument(
        "--elastic", action="store_true", help="resume on as many processes as torchrun started"
    )
    options = parser.parse_args(arguments)
    out = options.out or Path("out") / f"train-{options.preset}"
    settings = options.settings + ([f"corpus={options.corpus}"] if options.corpus else [])
    try:
        config = override(PRESETS[options.preset](), settings)
        result = train(
            config,
            out=out,
            resume=options.resume,
            elastic=options.elastic,
            max_restarts=options.max_restarts,
            on_log=lambda entry: print(entry.line(), flush=True),
            on_note=lambda text: print(text, flush=True),
        )
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    first, last = result.entries[0], result.entries[-1]
    print(
        f"loss {first.loss:.3f} -> {last.loss:.3f}, held-out {result.held_out.loss:.3f} "
        f"({result.held_out.bits_per_byte:.3f} bits/byte), {result.num_tokens / 1e6:.2f} M tokens "
        f"in {result.seconds:.0f} s\nmodel: {result.model}\nplot: {result.plot or 'needs [viz]'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
