"""Every Python example of a README runs as printed, and prints what stands below it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGES = sorted(
    path
    for folder in ("blocks", "recipes", "benches")
    for path in (ROOT / folder).rglob("README.md")
    if path.parent.name != "bundled" and FENCE.search(path.read_text())  # a card shows output
)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_examples_run(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a folder; the sources stay as they are
    examples = FENCE.findall(page.read_text())
    assert examples
    namespace: dict[str, object] = {"__name__": "readme"}
    for example in examples:
        exec(compile(example, str(page), "exec"), namespace)
        printed, shown = capsys.readouterr().out.split(), shown_below(example)
        assert not shown or printed[-len(shown) :] == shown
        if "# 32: tokens shared" in example:
            assert "32" in printed


def shown_below(example: str) -> list[str]:
    """Words of the comment that an example ends with: what it prints last."""
    lines = example.rstrip().splitlines()
    first = next((at for at in range(len(lines), 0, -1) if not lines[at - 1].startswith("# ")), 0)
    return " ".join(line.removeprefix("# ") for line in lines[first:]).split()


def test_links_point_at_files() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("*/*/README.md")):
        if ".venv" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
