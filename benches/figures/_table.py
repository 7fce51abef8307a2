"""The README table of an area: a line for every claim, each with when it was measured."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = "| claim | target | measured | command | | at |\n|---|---|---|---|---|---|"


def line(*cells: str) -> str:
    """
    >>> line("gap", "<= 1 %", "0.3 %", "`make figures`", "ok", "1a2b3c4, 2026-01-31")
    '| gap | <= 1 % | 0.3 % | `make figures` | ok | 1a2b3c4, 2026-01-31 |'
    """
    return "| " + " | ".join(cells) + " |"


def write_table(
    area: str, claims: Sequence[str], measured: Mapping[str, str], environment: str
) -> list[Path]:
    """Put the table between the area's marks in every README that has them.

    Args:
        claims: of all rows, in their order.
        measured: lines by claim; other claims keep the line they have, and those never measured
            have none.
        environment: what they were measured on, without the commit.
    """
    mark = re.compile(rf"(<!-- figures:{area} -->\n)(.*?)(<!-- /figures:{area} -->)", re.DOTALL)
    written = []
    for path in sorted(ROOT.rglob("README.md")):
        if {".venv", ".venv-gpu", ".git", "node_modules"} & set(path.parts):
            continue
        text = path.read_text()
        if found := mark.search(text):
            lines = {**_lines(found[2]), **measured}
            kept = (lines[claim] for claim in claims if claim in lines)
            table = "\n".join([HEAD, *kept, "", f"Measured on {environment}."]) + "\n"
            path.write_text(mark.sub(lambda m, t=table: m[1] + t + m[3], text))
            written.append(path)
    return written


def _lines(table: str) -> dict[str, str]:
    """Lines of a table by claim; those of a table without times have that of the table."""
    whole = re.search(r"commit (\w+); ([\d-]+)", table)
    at = f" {whole[1]}, {whole[2]} |" if whole and not table.startswith(HEAD) else ""
    rows = [text for text in table.splitlines()[2:] if text.startswith("| ")]
    return {text[2:].split(" | ")[0]: text + at for text in rows}
