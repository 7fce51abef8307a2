import dataclasses
import json
import math

import pytest

from recipes.train import tiny, train
from recipes.train.log import JsonLog, LogEntry, duration, plot_log, read_log, rounded

ENTRY = LogEntry(
    step=5,
    num_steps=10,
    loss=3.25,
    held_out_loss=3.5,
    bits_per_byte=1.75,
    learning_rate=1e-3,
    grad_norm=0.5,
    num_tokens=500,
    tokens_per_s=1234.5,
    num_skipped_steps=0,
    eta_s=75.2,
)


def test_a_line_says_all_of_it():
    line = ENTRY.line()
    for words in ("5/10", "3.250", "1.750 bits/byte", "1.0e-03", "0.50", "1,234 tokens/s", "1:15"):
        assert words in line
    assert "skipped" not in line
    assert "skipped 2" in dataclasses.replace(ENTRY, num_skipped_steps=2).line()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_log_opened_at_a_step_drops_what_came_after_and_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path, after_step=0)
    for step in range(1, 7):
        log.write(dataclasses.replace(ENTRY, step=step))
    with path.open("a") as file:
        file.write('{"step": 7, "lo')
    assert [entry["step"] for entry in read_log(path)] == [1, 2, 3, 4, 5, 6]
    again = JsonLog(path, after_step=3)
    again.write(dataclasses.replace(ENTRY, step=4))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("line", [b"3", b"[]", b'{"loss": 2.0}', b"\xff\xfe", b'{"st'])
def test_a_line_that_is_no_entry_is_refused_before_anything_is_dropped(tmp_path, line):
    path = tmp_path / "log.jsonl"
    good = json.dumps(dataclasses.asdict(ENTRY)).encode()
    path.write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: expected an entry"):
        JsonLog(path, after_step=9)
    assert path.read_bytes() == b"\n".join([good, line, good])


def test_numbers_survive_the_log_exactly(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl", after_step=0)
    entry = dataclasses.replace(ENTRY, loss=0.1 + 0.2, grad_norm=1 / 3)
    log.write(entry)
    assert LogEntry(**read_log(log.path)[0]) == entry


def test_numbers_that_are_not_finite_are_null_on_disk(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({**dataclasses.asdict(ENTRY), "loss": math.inf}) + "\n")  # older
    log = JsonLog(path, after_step=9)
    log.write(
        dataclasses.replace(ENTRY, loss=math.inf, grad_norm=math.nan, held_out_loss=-math.inf)
    )
    older, newer = (json.loads(x, parse_constant=refuse) for x in path.read_text().splitlines())
    assert (older["loss"], older["grad_norm"]) == (None, ENTRY.grad_norm)
    assert [newer[name] for name in ("loss", "grad_norm", "held_out_loss")] == [None] * 3
    entry = LogEntry(**read_log(path)[1])
    assert math.isnan(entry.loss)
    assert math.isnan(entry.grad_norm)
    assert entry.held_out_loss is None
    assert plot_log(read_log(path), tmp_path / "loss.png")


def test_the_plot_is_an_image(tmp_path):
    entries = [dataclasses.asdict(dataclasses.replace(ENTRY, step=s)) for s in (1, 2, 3)]
    assert plot_log(entries, tmp_path / "loss.png", "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (41_472, "41.5 k"), (3_700_000_000, "3.7 G")],
)
def test_large_numbers_are_told_in_the_unit_that_shows_them(count, text):
    assert rounded(count) == text


def test_the_title_of_a_tiny_runs_curve_says_its_size(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("recipes.train.run.plot_log", lambda *given: titles.append(given[-1]))
    small = {"max_corpus_bytes": 60_000, "num_steps": 1, "num_layers": 1, "hidden_size": 16}
    train(dataclasses.replace(tiny(), **small), out=tmp_path)
    size, _, rest = titles[0].partition(" k parameters, ")
    assert 1 <= float(size) < 1000, titles
    assert rest
