"""Logs of requests: one line each, with its moment and its lengths."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blocks._checks import check, fail
from blocks.sched.workload.csv_file import open_csv
from blocks.sched.workload.workload import Workload


def read_request_log(
    path: Path,
    *,
    time: str = "TIMESTAMP",
    prompt: str = "ContextTokens",
    output: str = "GeneratedTokens",
    model: str | None = None,
    name: str = "model",
) -> Workload:
    """Read a CSV with a line for each request; the defaults are the Azure LLM traces' headings.

    The clock starts at the first request; moments and lengths are kept exactly.

    Args:
        time: heading of the moments: seconds, or dates with times (in UTC).
        prompt, output: headings of the tokens.
        model: heading of the model's name; None where the log is of one model, called ``name``.

    Raises:
        ValueError: a heading that is not there, or a line that cannot be read, with its number.

    Reference: Patel et al., Splitwise, 2024 (the data set).
    """
    wanted = [time, prompt, output] + ([model] if model is not None else [])
    moments: list[Any] = []
    lengths: list[tuple[int, int]] = []
    names: list[str] = []
    with open_csv(path) as file:
        lines = csv.DictReader(file)
        missing = [heading for heading in wanted if heading not in (lines.fieldnames or ())]
        check(not missing, f"{path.name} line 1", f"the headings {wanted}", lines.fieldnames)
        for line in lines:
            try:
                moments.append(_moment(line[time]))
                same = isinstance(moments[-1], float) == isinstance(moments[0], float)
                check(same, time, "all seconds, or all dates", line[time])
                lengths.append((_count(line[prompt]), _count(line[output])))
                names.append(name if model is None else line[model])
                check(bool(names[-1]), "model", "a name", repr(names[-1]))
            except (ValueError, TypeError) as error:
                where = f"{path.name} line {lines.line_num}"
                raise fail(where, "a moment and two numbers of tokens", error) from error
    models = tuple(dict.fromkeys(names)) or (name,)
    number = {found: index for index, found in enumerate(models)}
    table = np.array(lengths, np.int32).reshape(-1, 2)
    return Workload.of(
        models,
        _from_first(moments),
        np.array([number[found] for found in names], np.int32),
        prompt_len=table[:, 0],
        output_len=table[:, 1],
    )


def _count(text: str) -> int:
    number = int(text)
    check(0 <= number < 1 << 31, "tokens", "0 or more, less than 2**31", text[:40])
    return number


def _moment(text: str) -> float | np.datetime64:
    try:
        seconds = float(text)
    except ValueError:
        plain = text.strip().removesuffix("Z").removesuffix("+00:00")
        date = np.datetime64(plain, "ns")
        check(not np.isnat(date), "moment", "a date", text[:40])
        return date
    check(math.isfinite(seconds), "moment", "seconds", text[:40])
    return seconds


def _from_first(moments: list[Any]) -> npt.NDArray[np.float64]:
    """Seconds since the earliest; dates are subtracted in whole nanoseconds."""
    if moments and isinstance(moments[0], np.datetime64):
        dates = np.array(moments, "datetime64[ns]")
        return (dates - dates.min()).astype(np.int64) / 1e9
    seconds = np.array(moments, np.float64)
    return seconds - seconds.min() if moments else seconds
