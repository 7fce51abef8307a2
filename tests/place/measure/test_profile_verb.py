"""The verb ``profile``."""

from pathlib import Path

import pytest

from blocks.sched.profile import Configuration, load_profile
from recipes.model import read_config
from recipes.place.__main__ import main
from recipes.place.measure.layouts import layouts
from tests.place.group.groups import save_models


def test_the_verb_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = save_models(tmp_path, 0)
    out = tmp_path / "made" / "tiny.profile"
    asked = ["profile", str(folder), "--out", str(out), "--name", "chat"]
    assert main([*asked, "rounds=1", "decode_steps=1", "token_budget=32", "max_num_seqs=2"]) == 0
    profile = load_profile(out)
    assert profile.model == "chat"
    assert profile.configurations == (Configuration(1, 1),)
    assert profile.timings[0].decode_batches == (1, 2)
    assert profile.timings[0].prefill[-1].num_tokens == 32
    assert "visits" in capsys.readouterr().out


def test_what_cannot_be_timed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = save_models(tmp_path, 0)
    for more, said in (
        (["--layouts", "3x1"], "tp"),
        (["token_budgt=3"], "token_budget"),
        (["rounds=0"], "rounds"),
        (["--out", str(tmp_path)], "folder"),
    ):
        assert main(["profile", str(folder), *more]) == 2
        assert said in capsys.readouterr().err


def test_layouts_are_those_the_model_can_be_cut_into(tmp_path: Path) -> None:
    (folder,) = save_models(tmp_path, 0)
    found = layouts(read_config(folder), 8)
    assert found == ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)), "4 heads, 2 layers"
