"""The file a user writes: read, laid over, or refused with the field's name."""

import copy
import json

import numpy as np
import pytest

from blocks.sched.profile import bundled_profile, save_profile
from recipes.place.__main__ import main
from recipes.place.config_file import parse_config, read_config
from recipes.place.profiles import profiles_of
from recipes.place.traffic import rates_of, workload_of
from tests.place.configs import TWO, two

TOML = """
[[models]]
name = "chat"
folder = "here"
profile = "chat.profile"
ttft_s = 1

[cluster]
memory = "1.5GiB"
"""


def test_toml_and_json_say_the_same_and_files_are_found_beside_the_config(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    save_profile(bundled_profile("bert-1.3b"), tmp_path / "chat.profile")
    (tmp_path / "c.toml").write_text(TOML)
    same = {
        "models": [{"name": "chat", "folder": "here", "profile": "chat.profile", "ttft_s": 1.0}],
        "cluster": {"memory": "1.5GiB"},
    }
    (tmp_path / "c.json").write_text(json.dumps(same))
    monkeypatch.chdir("/")
    config = read_config(tmp_path / "c.toml")
    assert config == read_config(tmp_path / "c.json")
    assert config.model("chat").folder == str(tmp_path / "here")
    assert config.cluster.memory_bytes == 3 << 29
    (profile,) = profiles_of(config, measure=_never).values()
    assert (profile.model, profile.latency_s()) == (
        "chat",
        bundled_profile("bert-1.3b").latency_s(),
    )


def _never(config, model):
    raise AssertionError("measured without being asked")


def test_settings_lie_over_any_table_and_over_models():
    config = two("num_devices=8", "chat.rate=1.5", "port=0", "launcher=ray", "chat.tpot_s=none")
    assert (config.cluster.num_devices, config.serving.port, config.serving.launcher) == (
        8,
        0,
        "ray",
    )
    assert (config.model("chat").rate, config.model("chat").tpot_s) == (1.5, None)
    assert config.model("rank") == two().model("rank")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("models", 0, "ttft"), 1, "did you mean ttft_s?"),
        (("models", 0, "ttft_s"), "1", "models[0].ttft_s: expected a number"),
        (("models", 0, "ttft_s"), float("nan"), "chat.ttft_s: expected more than 0"),
        (("models", 0, "rate"), 10**400, "models[0].rate: expected a number that a float can hold"),
        (("models", 0, "cv"), 1e300, "chat.cv: expected 0.001 to 1000"),
        (("models", 0, "kv_tokens"), True, "models[0].kv_tokens: expected a whole number"),
        (("models", 0, "name"), "a b", "models: name: expected a name"),
        (("models", 1, "name"), "chat", "['chat'] twice"),
        (("models", 0, "folder"), None, "chat.folder: expected one to measure"),
        (("models",), [], "models: expected at least one"),
        (("models",), {"a": 1}, "models: expected a list of tables"),
        (("models", 0), "chat", "models[0]: expected a table"),
        (("clusters",), {}, "did you mean cluster?"),
        (("cluster",), 4, "cluster: expected a table"),
        (("cluster", "memory"), "lots", "memory: expected a size such as 80GiB"),
        (("cluster", "memory"), "9" * 400, "memory: expected a finite size"),
        (("serving",), {"placement": ""}, "placement: expected auto or a file"),
        (("cluster", "num_nodes"), 3, "num_nodes: expected a divisor of num_devices (4)"),
        (("cluster", "device"), "tpu", "device: expected cpu or cuda"),
        (("engine",), {"token_budget": 8}, "token_budget: expected at least max_num_seqs (64)"),
        (("engine",), {"pp_batches": 0}, "pp_batches: expected a positive whole number, got 0"),
        (("traffic", "trace_kind"), "log", "trace_kind: expected requests or functions"),
        (("serving",), {"launcher": "k8s"}, "launcher: expected local or ray"),
        (("serving",), {"least_gain": 1}, "least_gain: expected a share from 0 to 1"),
        (("serving",), {"given_up_s": -1}, "given_up_s: expected 0 or more seconds"),
        (("serving",), {"least_stay_s": float("inf")}, "least_stay_s: expected 0 or more seconds"),
        (("serving",), {"window_s": 0}, "window_s: expected more than 0"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_was_expected(path, value, told):
    data = copy.deepcopy(TWO)
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ValueError) as refused:
        parse_config(data)
    assert told in str(refused.value)
    assert "got" in str(refused.value)


@pytest.mark.parametrize(
    "setting", ["num_device=3", "nobody.rate=1", "chat.rates=1", "port", "port=x"]
)
def test_a_wrong_setting_is_refused(setting):
    with pytest.raises(ValueError, match="expected"):
        two(setting)


def test_a_model_without_folder_needs_a_profile():
    with pytest.raises(ValueError, match="folder: expected one to measure"):
        parse_config({"models": [{"name": "chat"}]})
    with pytest.raises(ValueError, match="expected a profile file, measure, or one of"):
        profiles_of(parse_config({"models": [{"name": "chat", "profile": "bert"}]}), _never)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for name, text in (
        ("a.toml", b"x = ["),
        ("a.json", b"["),
        ("b.toml", b"\xff"),
        ("b.json", b"[" * 100000),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match="expected TOML"):
            read_config(tmp_path / name)
    with pytest.raises(ValueError, match="check the path"):
        read_config(tmp_path / "none.toml")


def test_more_traffic_than_can_be_drawn_is_refused():
    with pytest.raises(ValueError, match="traffic: expected at most"):
        workload_of(two("scale=1e9"))


def test_a_folder_that_cannot_be_a_path_is_a_name(tmp_path):
    (tmp_path / "c.toml").write_text('models = [{name = "a", folder = "%s"}]' % ("a" * 5000))
    assert read_config(tmp_path / "c.toml").model("a").folder == "a" * 5000


def test_traffic_has_the_rates_limits_and_lengths_that_were_asked_for():
    config = two("duration_s=4000", "scale=2", "prompt_len=20")
    assert rates_of(config) == {"chat": 6.0, "rank": 4.0}
    workload = workload_of(config)
    np.testing.assert_allclose(workload.rates(), [6, 4], rtol=0.05)
    chat = workload.model == workload.models.index("chat")
    assert set(workload.slo_s[chat]) == {1.0}
    assert set(workload.slo_s[~chat]) == {0.5}
    assert set(workload.tpot_s[chat]) == {0.1}
    assert abs(workload.prompt_len.mean() / 20 - 1) < 0.05
    assert workload.prompt_len.min() >= 1


def test_a_trace_replaces_the_rates(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("TIMESTAMP,ContextTokens,GeneratedTokens,m\n0,5,6,rank\n2,7,8,chat\n")
    config = two(f"trace={log}", "trace_model=m")
    workload = workload_of(config)
    assert (workload.models, workload.prompt_len.tolist()) == (("chat", "rank"), [5, 7])
    assert workload.model.tolist() == [1, 0]
    with pytest.raises(ValueError, match="trace_model"):
        workload_of(two(f"trace={log}"))


def test_the_command_names_its_verbs(capsys):
    assert main(["nothing"]) == 2
    assert "verb: expected one of" in capsys.readouterr().err
    assert main(["--help"]) == 0
