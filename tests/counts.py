"""``told``: how calls with bad counts are answered where annotations are not executed.

The test run checks annotations (``tests.annotations``), so there a count of another type never gets
as far as the code; users' programs run without.
"""

import json
import subprocess
import sys
from collections.abc import Mapping

BAD = ("2.5", "'4'", "True", "None", "-1", "float('nan')", "[3]")
ASK = """
import json, sys
setup, calls = json.load(sys.stdin)
scope = {}
exec(setup, scope)
def told(call):
    try:
        eval(call, scope)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"
print(json.dumps([told(call) for call in calls]))
"""


def told(setup: str, calls: list[str]) -> list[str]:
    """The error of each call, or ``accepted``; in one process of their own."""
    asked = json.dumps([setup, calls])
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def check_refused(setup: str, good: Mapping[str, str], counts: Mapping[str, list[str]]) -> None:
    """Every count of every call is refused by its name where it is none, and only then.

    Args:
        good: calls that are accepted, ``{name: "f(a=1, b=2)"}``; each count once, as ``name=1``.
        counts: of each call, names of arguments; with ``?`` behind where None is accepted.
    """
    calls = [(name, "", call) for name, call in good.items()]
    for name, fields in counts.items():
        for field in fields:
            bare = field.rstrip("?")
            head, _, tail = good[name].partition(f"{bare}=")
            end = min(at for at in (tail.find(","), tail.find(")")) if at >= 0)
            for bad in BAD:
                if not (bad == "None" and field.endswith("?")):
                    calls.append((name, bare, f"{head}{bare}={bad}{tail[end:]}"))
    answers = told(setup, [call for _, _, call in calls])
    wrong = [
        f"{call}: {answer}"
        for (_, field, call), answer in zip(calls, answers, strict=True)
        if not (f"ValueError: {field}" in answer and ": expected " in answer if field
                else answer == "accepted")
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)
