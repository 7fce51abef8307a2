import dataclasses

import pytest

from recipes.train import PRESETS, TrainConfig, card, override, tiny
from recipes.train.__main__ import main
from recipes.train.config import resolve
from recipes.train.order import row_bounds


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
        ("seed=-1", "at least 0"),
        ("context_len=1", "at least 2"),
        ("min_lr_share=-3", "[0, 1]"),
        ("min_lr_share=nan", "[0, 1]"),
        ("weight_decay=nan", "finite"),
        ("weight_decay=-1", "at least 0"),
        ("learning_rate=inf", "finite"),
        ("profile=50:61", "num_steps (60)"),
        ("trace=²:³", "steps like 10:12"),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(setting, words):
    with pytest.raises(ValueError, match=r".") as error:
        override(tiny(), [setting])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pp": "2"}, "pp: expected int, got '2'"),
        ({"num_steps": 2.5}, "num_steps: expected int, got 2.5"),
        ({"num_steps": True}, "num_steps: expected int, got True"),
        ({"cuts": 3}, "cuts: expected str or None, got 3"),
        ({"compile": 1}, "compile: expected bool, got 1"),
    ],
)
def test_values_of_other_kinds_are_refused(changes, words):
    with pytest.raises(ValueError, match=r".") as error:
        dataclasses.replace(tiny(), **changes)
    assert str(error.value) == words
    assert dataclasses.replace(tiny(), learning_rate=1).learning_rate == 1


def test_cuts_alone_say_how_many_slices_there_are():
    config = resolve(override(tiny(), ["cuts=0,16,48,64"]))
    assert (config.slices, row_bounds(config)) == (3, (0, 16, 48, 64))
    for setting in ("cuts=64", "cuts=", "cuts=0,64,"):
        resolve(override(tiny(), [setting]))  # looked at by ``row_bounds``


def test_a_config_of_another_version_is_refused_by_name():
    saved = tiny().to_json()
    assert TrainConfig.from_json({k: v for k, v in saved.items() if k != "tensorboard"}) == tiny()
    with pytest.raises(ValueError, match=r"got \['dropout'\]; written by another version"):
        TrainConfig.from_json(saved | {"dropout": 0.1})
    with pytest.raises(ValueError, match="expected settings"):
        TrainConfig.from_json(["num_steps"])


def test_auto_is_decided_before_the_run():
    config = override(tiny(), ["dtype=auto"])
    assert resolve(config).dtype in ("float32", "bfloat16")
    settled = resolve(tiny())
    assert (settled.lanes, settled.microbatch) == (1, tiny().batch_size)
    assert resolve(settled) == settled


def test_the_command_line_reports_errors_and_returns_two(tmp_path, capsys):
    assert main(["--preset", "tiny", "--out", str(tmp_path), "num_stps=3"]) == 2
    assert "did you mean num_steps?" in capsys.readouterr().err


def test_a_verb_comes_before_everything_else(capsys):
    assert main(["--preset", "tiny", "plan", "pp=2"]) == 2
    assert "verb: expected it before everything else, got 'plan'" in capsys.readouterr().err


def test_the_command_line_trains(tmp_path, capsys):
    text = "def double(x):\n    return 2 * x\n\n\n" * 400
    (tmp_path / "mine.py").write_text(text)
    settings = ["num_steps=6", "vocab_size=300", "checkpoint_every=3"]
    arguments = ["--preset", "tiny", settings[0], "--corpus", str(tmp_path / "mine.py")]
    assert main([*arguments, "--out", str(tmp_path / "out"), *settings[1:]]) == 0
    printed = capsys.readouterr().out
    assert "step     6/6" in printed
    assert "bits/byte" in printed
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_a_card_of_no_run_is_one_clear_error(tmp_path, capsys):
    assert card.main([str(tmp_path)]) == 2
    assert "run: expected the folder of a finished run" in capsys.readouterr().err
