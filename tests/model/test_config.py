"""config.json in the styles of transformers 4 and 5, there and back, and refused when broken."""

import dataclasses
import json
import random
from typing import Any

import pytest

from blocks.ops import LinearScaling, Llama3Scaling, YarnScaling
from recipes.model import ModelConfig, Rope
from tests.model.oracle import CASES
from tests.model.test_decoder import tiny

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
GPT2 = {"model_type": "gpt2", "vocab_size": 99, "n_embd": 32, "n_head": 4, "n_layer": 2}


def hf_config(case: str) -> dict[str, Any]:
    """What transformers 5 writes for a case."""
    import transformers

    name, options = CASES[case]
    config = getattr(transformers, f"{name}Config")(**options)
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("case", CASES)
def test_config_survives_the_way_there_and_back(case):
    config = ModelConfig.from_hf(hf_config(case))
    again = ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())))
    assert again == config


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_back_what_it_wrote(case):
    """Every key that changes the result comes back equal through our record."""
    import transformers

    name, _ = CASES[case]
    before = hf_config(case)
    written = ModelConfig.from_hf(before).to_hf()
    after = getattr(transformers, f"{name}Config")(**written)
    ignored = {"architectures", "dtype"}
    for key, value in json.loads(after.to_json_string(use_diff=False)).items():
        if key in written and before.get(key) is not None and key not in ignored:
            assert value == (pytest.approx(before[key]) if type(value) is float else before[key])


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({}, Rope(10000.0)),
        ({"rope_theta": 500000.0}, Rope(500000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, Rope(1e6)),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
            Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        (
            {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
            Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        ({"rope_scaling": YARN | {"type": "yarn"}}, Rope(10000.0, YarnScaling(4.0, 32768))),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            Rope(10000.0, LinearScaling(2.0)),
        ),
    ],
)
def test_rotary_settings_of_both_styles(keys, rope):
    assert ModelConfig.from_hf(LLAMA | keys).rope == rope


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_of_both_styles(key):
    assert ModelConfig.from_hf(LLAMA | {key: "bfloat16"}).dtype == "bfloat16"


def test_windows_of_qwen2_follow_its_three_ways_of_saying_so():
    base = LLAMA | {"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 8}
    switched = base | {"use_sliding_window": True, "max_window_layers": 3}
    assert ModelConfig.from_hf(base).windows == ()
    assert ModelConfig.from_hf(switched).windows == (None, None, None, 8)
    kinds = ["sliding_attention", "full_attention"] * 2
    listed = switched | {"layer_types": kinds}
    assert ModelConfig.from_hf(listed).windows == (8, None, 8, None)


def test_defaults_a_short_config_leaves_out():
    config = ModelConfig.from_hf(LLAMA | {"num_key_value_heads": None})
    assert (config.num_kv_heads, config.head_dim) == (32, 128)
    gpt2 = ModelConfig.from_hf(GPT2)
    assert (gpt2.intermediate_size, gpt2.max_positions, gpt2.tie_embeddings) == (128, 1024, True)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2"])
def test_keys_that_are_absent_mean_what_they_mean_in_transformers(case):
    """Absent is the family's default, null is none: the two differ in Mistral and Gemma-2."""
    name, _ = CASES[case]
    sizes = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    whole = json.loads(config.to_json_string(use_diff=False))
    short = sizes | {"model_type": name.lower()}
    ours, theirs = ModelConfig.from_hf(short), ModelConfig.from_hf(whole)
    assert dataclasses.replace(ours, **IDS) == dataclasses.replace(theirs, **IDS)


IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_ids": (), "pad_token_id": None}


def test_attention_of_a_layer_and_cache_bytes():
    config = tiny(windows=(None, 5), attention_softcap=30.0)
    assert config.attention(0) == (8**-0.5, None, 30.0)
    assert config.attention(1) == (8**-0.5, 5, 30.0)
    assert config.kv_bytes_per_token(2) == 2 * 2 * 2 * 8 * 2
    llama = ModelConfig.from_hf(LLAMA)
    assert llama.kv_bytes_per_token(2) == 128 << 10  # Llama-3-8B: 128 KiB a token


BROKEN = [
    ({"model_type": "t5"}, r"model_type: expected one of \['gemma2', .*'qwen3'\], got 't5'"),
    ({"model_type": None}, "expected the key 'model_type'"),
    ({"hidden_size": None}, "expected the key 'hidden_size'"),
    ({"vocab_size": "many"}, "vocab_size: expected a whole number, got 'many'"),
    ({"vocab_size": True}, "vocab_size: expected a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: expected 1 to 4096, got 0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"hidden_size": -4096}, "hidden_size: expected 1 to"),
    ({"hidden_size": 10**400}, "hidden_size: expected 1 to"),
    ({"num_attention_heads": 0}, "num_attention_heads: expected 1 to"),
    ({"num_key_value_heads": 5}, r"num_heads: expected a multiple of num_kv_heads \(5\), got 32"),
    ({"head_dim": 3}, "head_dim: expected an even number"),
    ({"hidden_act": "mish"}, "hidden_act: expected one of"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps: expected a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a finite number"),
    ({"rope_theta": 0.5}, "rope_theta: expected a number above 1"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "type: expected one of .*'yarn'"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type: expected one of"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "expected the key 'factor'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 0.1}}, "factor: expected at least 1"),
    ({"rope_scaling": 3}, "rope_scaling: expected a JSON object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0"),
    ({"eos_token_id": "end"}, "eos_token_id: expected a token id"),
    ({"torch_dtype": "int8"}, "torch_dtype: expected one of"),
    ({"quantization_config": {"bits": 4}}, "quantized checkpoints are not read"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
]


@pytest.mark.parametrize(("keys", "message"), BROKEN)
def test_a_broken_config_gives_one_clear_error(keys, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(LLAMA | keys)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GPT2 | {"add_cross_attention": True}, "only decoders are built"),
        (GPT2 | {"n_layer": None}, "expected the key 'n_layer'"),
        (
            LLAMA | {"model_type": "gemma2", "use_bidirectional_attention": True},
            "only causal attention",
        ),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["x"]}, "layer_types: expected a list"),
        (
            LLAMA | {"model_type": "gemma2", "sliding_window": None},
            "sliding_window: expected a window",
        ),
        (LLAMA | {"model_type": "mixtral", "num_local_experts": 1}, "num_experts_per_token"),
        (LLAMA | {"model_type": "mistral", "sliding_window": -1}, "window: expected a positive"),
    ],
)
def test_options_that_are_not_built_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(raw)


VALUES = [None, True, -1, 0, 1, 10**12, 1.5, float("inf"), "", "x", [], [1], {}, {"a": 1}]


def test_2000_mutated_configs_are_read_or_refused():
    """Any key may hold any value: the answer is a config within bounds or one ValueError."""
    draw = random.Random(0)
    bases = [hf_config(case) for case in CASES]
    refused = 0
    for _ in range(2000):
        raw = dict(draw.choice(bases))
        for key in draw.sample(sorted(raw), draw.randint(1, 3)):
            raw[key] = draw.choice(VALUES)
            if draw.random() < 0.2:
                del raw[key]
        try:
            config = ModelConfig.from_hf(raw)
        except ValueError:
            refused += 1
        else:
            assert dataclasses.replace(config) == config
            json.dumps(config.to_hf())
    assert 400 < refused < 1900
