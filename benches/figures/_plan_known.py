"""Figures of plans that are known: closed forms, plans of practitioners, plans of Alpa."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benches.alpa_found import compare, found_runs
from benches.alpa_runs import Run
from benches.figures.row import Measured, Row
from tests.sharding.closed_forms import results

ROOT = Path(__file__).parents[2]
COMMAND = "python -m benches.figures --area plan"
NAMES = {"gpt": "GPT", "moe": "MoE", "wide_resnet": "Wide-ResNet"}


def rows() -> Iterator[Row]:
    yield Row(
        "Alpa's closed forms (MLPs, two-axis meshes, forced batch, attention, transposes, views, "
        "sums, ZeRO, convolutions, lookups, experts), in fractions; where the optimum is below",
        "30 of 30 exact, none above",
        COMMAND,
        _closed_forms,
    )
    yield Row(
        "plans of practitioners found on traced models: columns, heads and rows on 4 and on 8; the "
        "vocabulary; ZeRO where memory binds; small conv nets by the batch; wide late layers by "
        "channels; experts on ranks; fewer layers beside a heavy head",
        "8 of 8",
        "python -m tests.plan.known_plans",
        _known,
    )
    for family, name in NAMES.items():
        of = [run for run in found_runs() if run.model.family == family]
        gpus = ", ".join(str(run.model.num_gpus) for run in of)
        yield Row(
            f"plans that Alpa published for {name} on {gpus} V100, with the best strategies inside "
            "of their stages, against those found here with microbatches free, one cost model "
            "(simulated): as good or better",
            f"{len(of)} of {len(of)}",
            f"python -m benches.alpa_found --family {family}",
            functools.partial(_found, of),
            nightly=True,
        )


def _closed_forms() -> Measured:
    found = results()
    right = sum(bool(one["exact"] and one["same_counts"] and one["proved"]) for one in found)
    better, worse = (sum(one["free"] == how for one in found) for how in ("better", "worse"))
    text = f"{right} of {len(found)} exact; below in {better}, above in {worse}"
    return Measured(text, right == len(found) and not worse)


def _known() -> Measured:
    command = [sys.executable, "-m", "tests.plan.known_plans"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    right = known_right(json.loads(done.stdout))
    wrong = [name for name, ok in right.items() if not ok]
    text = f"{sum(right.values())} of {len(right)}" + "".join(f"; not {name}" for name in wrong)
    return Measured(text, not wrong)


def known_right(found: dict[str, Any]) -> dict[str, bool]:
    """Whether each is what it is known to be."""
    right = {}
    for name in ("columns and rows, heads, on 4", "columns and rows, heads, on 8"):
        cuts = [found[name][part] for part in ("columns", "rows", "attention")]
        right[name] = cuts == [["S(0)"], ["S(1)"], ["S(1)"]]
    picked = found["vocabulary"]
    right["vocabulary"] = (picked["head"], picked["picked"]) == ("S(0)", ["S(2)"])
    right["ZeRO"] = all(one["whole"] == one["room"] for one in found["zero"])
    small, wide = (found["convolutions"][name] for name in ("small", "wide"))
    right["small conv nets"] = set(small) == {"batch"}
    right["wide late layers"] = wide[:4] + wide[-4:] == ["batch"] * 4 + ["channels"] * 4
    experts = found["experts"]
    right["experts"] = experts["up"] == experts["down"] == "S(0)" and experts["all_to_all"] > 0
    layers = found["heavy head"]["layers"]
    right["heavy head"] = layers[-1] < max(layers[:-1])
    return right


def _found(of: Sequence[Run]) -> Measured:
    every = [compare(run) for run in of]
    good = sum(one.as_good for one in every)
    times = ", ".join(f"{one.alpa_s / one.ours_s:.2f}x" for one in every)
    text = f"{good} of {len(every)}; Alpa's take {times} as long"
    return Measured(text, good == len(every))
