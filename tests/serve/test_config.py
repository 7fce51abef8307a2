"""Settings that cannot work are refused when they are made."""

import pytest

from recipes.serve import EngineConfig, ServerConfig


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_bytes": 0},
        {"kv_bytes": "2GiB"},
        {"kv_bytes": float("nan")},
        {"max_num_seqs": 1.5},
        {"max_model_len": 0},
        {"max_model_len": 1},
        {"dtype": "int8"},
        {"max_num_seqs": 0},
        {"block_size": 0},
        {"policy": "random"},
        {"kv_dtype": "fp4"},
        {"token_budget": 8, "max_num_seqs": 9},
    ],
)
def test_an_impossible_engine_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EngineConfig(**settings)


def test_other_machines_are_let_in_only_with_a_key():
    with pytest.raises(ValueError, match="API key"):
        ServerConfig(host="0.0.0.0")
    assert not ServerConfig(host="0.0.0.0", api_key="secret").is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
def test_loopback_needs_no_key(host):
    assert ServerConfig(host=host).is_loopback


def test_the_key_is_not_shown():
    assert "secret" not in repr(ServerConfig(api_key="secret"))
