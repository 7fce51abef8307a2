"""The tables of figures: what is not measured again is neither lost nor passed off as new."""

from benches.figures import __main__ as figures

HEAD = ["| claim | target | measured | command | |", "|---|---|---|---|---|"]
TAIL = ["", "Measured on a new machine."]


def test_long_rows_stay_when_they_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    table = [*HEAD, "| short | | 1 | `x` | ok |", "| long | | 7 | `y` | ok |", "| gone | | 9 | | |"]
    marks = ("before\n<!-- figures:kv -->\n", "<!-- /figures:kv -->\nafter\n")
    readme.write_text(marks[0] + "\n".join([*table, "", "Measured then."]) + "\n" + marks[1])
    new = [*HEAD, "| short | | 2 | `x` | ok |", *TAIL]
    for _ in range(2):  # a second time changes nothing
        assert figures.write_table("kv", new, ["long", "never measured"]) == [readme]
        text = readme.read_text()
        assert text.startswith(marks[0])
        assert text.endswith(marks[1])
        assert "| short | | 2 |" in text
        assert text.count("| long | | 7 |") == 1
        assert "Measured earlier, with --nightly: the last 1." in text
        assert "gone" not in text
    figures.write_table("kv", new)
    assert "long" not in readme.read_text()
