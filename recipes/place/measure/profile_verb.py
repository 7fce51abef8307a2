"""``python -m recipes.place profile``: time a model on this machine."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from blocks.sched.profile import Configuration, format_profile
from recipes.model import read_config
from recipes.model.bundled import model_folder
from recipes.place.group.spec import GroupSpec
from recipes.place.measure.layouts import layouts
from recipes.place.measure.measure_profile import measure_profile
from recipes.place.measure.points import Points
from recipes.plan.writable import check_writable
from recipes.settings import add_settings, override

DESCRIPTION = """Time a model on this machine and write its profile.

Its engine runs prompts and decode steps of known lengths, in every layout asked for; medians of
rounds over all of them. Settings are those of an engine, and of what is timed:
  num_threads=1 token_budget=512 max_num_seqs=64 block_size=16 max_model_len=2048 device=cpu
  rounds=5 decode_steps=4
"""
SEE = "python -m recipes.place profile --help"
TELL_EVERY_S = 5.0
TIMED = ("rounds", "decode_steps")


def main(arguments: list[str]) -> int:
    """The verb; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.place profile",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="in the Hugging Face layout, or 'bundled'")
    add_settings(parser, "of the engine and of what is timed, as above")
    parser.add_argument("--out", type=Path, help="where to write it; printed if not given")
    parser.add_argument("--name", help="of the model in the profile; the folder's if not given")
    parser.add_argument(
        "--layouts",
        default="1x1",
        help="(tp x pp) separated by commas, such as 1x1,2x1; or a number: all of so many ranks",
    )
    options = parser.parse_intermixed_args(arguments)
    check_writable(options.out)
    folder = model_folder(options.folder)
    model = read_config(folder)
    timed = [one for one in options.settings if one.split("=")[0] in TIMED]
    others = [one for one in options.settings if one not in timed]
    limits = override(GroupSpec(group="measured"), others, see=SEE, also=TIMED)
    points = override(Points(), timed, see=SEE)
    wanted = options.layouts
    if wanted.isdecimal():
        chosen = layouts(model, int(wanted))
    else:
        chosen = tuple(Configuration.parse(one) for one in wanted.split(","))
    name = options.name or Path(folder).resolve().name
    profile = measure_profile(
        folder,
        chosen,
        model=name,
        points=points,
        limits=limits,
        progress=Progress(name, lambda text: print(text, flush=True)),
    )
    text = format_profile(profile)
    if options.out is None:
        print(text, end="")
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
        print(f"profile: {options.out}")
    return 0


class Progress:
    """Says now and then how far it has come."""

    def __init__(self, model: str, say: Callable[[str], None]) -> None:
        self._model, self._say, self._next_s = model, say, 0.0

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or done == total:
            self._next_s = now_s + TELL_EVERY_S
            self._say(f"profile of {self._model}: {done} of {total} visits")
