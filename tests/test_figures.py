"""The tables of figures: what is not measured again is neither lost nor passed off as new."""

from benches.figures import _table as table

OLD = """| claim | target | measured | command | |
|---|---|---|---|---|
| short | | 1 | `x` | ok |
| long | | 7 | `y` |  |
| gone | | 9 | `z` | |

Measured on a machine; commit 1a2b3c4; 2025-01-31.
"""
MARKS = ("before\n<!-- figures:kv -->\n", "<!-- /figures:kv -->\nafter\n")


def test_rows_not_measured_stay_with_the_time_of_their_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(MARKS[0] + OLD + MARKS[1])
    claims = ["short", "never measured", "long"]
    new = {"short": table.line("short", "", "2", "`x`", "ok", "5d6e7f8, 2026-01-31")}
    for _ in range(2):  # a second time changes nothing
        assert table.write_table("kv", claims, new, "another machine") == [readme]
        text = readme.read_text()
        assert text.startswith(MARKS[0])
        assert text.endswith(MARKS[1])
        assert "| short |  | 2 | `x` | ok | 5d6e7f8, 2026-01-31 |" in text
        assert text.count("| long | | 7 | `y` |  | 1a2b3c4, 2025-01-31 |") == 1
        assert "gone" not in text
        assert "never measured" not in text
        assert "Measured on another machine." in text
    table.write_table("kv", ["short"], {}, "another machine")
    assert "long" not in readme.read_text()
    assert "| short |" in readme.read_text()
