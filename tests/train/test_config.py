import dataclasses

import pytest

from recipes.train import PRESETS, TrainConfig, card, override, tiny
from recipes.train.__main__ import main
from recipes.train.config import resolve


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_survive_json(name):
    config = PRESETS[name]()
    assert TrainConfig(**config.to_json()) == config


def test_overrides_are_parsed_by_type():
    settings = ["num_steps=1_000", "learning_rate=1e-3", "compile=true", "max_corpus_bytes=none"]
    config = override(tiny(), [*settings, "corpus=/a=b", "dtype=bfloat16"])
    assert (config.num_steps, config.learning_rate, config.compile) == (1000, 1e-3, True)
    assert (config.max_corpus_bytes, config.corpus, config.dtype) == (None, "/a=b", "bfloat16")


def test_every_field_can_be_overridden_with_its_own_value():
    config = tiny()
    settings = [f"{f.name}={getattr(config, f.name)}" for f in dataclasses.fields(config)]
    assert override(config, settings) == config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learnig_rate=1", "did you mean learning_rate?"),
        ("zzz=1", "config.py"),
        ("num_steps", "key=value"),
        ("num_steps=many", "int"),
        ("num_steps=0", "positive"),
        ("learning_rate=nan", "positive"),
        ("compile=perhaps", "true or false"),
        ("optimizer=sgd", "adamw or muon"),
        ("chat_share=1", "[0, 1)"),
        ("vocab_size=100", "300"),
        ("num_heads=3", "hidden_size"),
        ("keep_checkpoints=1", "at least 2"),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(setting, words):
    with pytest.raises(ValueError, match=r".") as error:
        override(tiny(), [setting])
    assert words in str(error.value)


def test_auto_is_decided_before_the_run():
    config = override(tiny(), ["dtype=auto"])
    assert resolve(config).dtype in ("float32", "bfloat16")
    settled = resolve(tiny())
    assert (settled.lanes, settled.microbatch) == (1, tiny().batch_size)
    assert resolve(settled) == settled


def test_the_command_line_reports_errors_and_returns_one(tmp_path, capsys):
    assert main(["--preset", "tiny", "--out", str(tmp_path), "num_stps=3"]) == 1
    assert "did you mean num_steps?" in capsys.readouterr().err


def test_the_command_line_trains(tmp_path, capsys):
    text = "def double(x):\n    return 2 * x\n\n\n" * 400
    (tmp_path / "mine.py").write_text(text)
    settings = ["num_steps=6", "vocab_size=300", "checkpoint_every=3"]
    arguments = ["--preset", "tiny", "--corpus", str(tmp_path / "mine.py")]
    assert main([*arguments, "--out", str(tmp_path / "out"), *settings]) == 0
    printed = capsys.readouterr().out
    assert "step     6/6" in printed
    assert "bits/byte" in printed
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_a_card_of_no_run_is_one_clear_error(tmp_path, capsys):
    assert card.main([str(tmp_path)]) == 1
    assert "run: expected the folder of a finished run" in capsys.readouterr().err
