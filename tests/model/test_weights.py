"""Folders: written here and read by transformers, read back, and refused when broken."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.model import Decoder, families, load_model, read_config, save_model
from recipes.model.weights import part_of
from tests.model.memory import peak_growth_of_loading
from tests.model.oracle import CASES, hf_folder, hf_logits, hf_model
from tests.model.test_decoder import random_decoder, tiny
from tests.model.test_families import LIMIT, prefill_logits, tokens_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama of ours, one file."""
    save_model(random_decoder(tiny()), tmp_path / "model")
    return tmp_path / "model"


def assert_same_weights(one: Decoder, two: Decoder) -> None:
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other
        assert torch.equal(a, b), name


def edit(path, change) -> None:
    """Rewrite a JSON file through ``change``."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_written_here_loads_in_transformers_with_equal_logits(case, root, tmp_path):
    import transformers

    decoder = load_model(hf_folder(case, root))
    save_model(decoder, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(model) is type(hf_model(case))
    tokens = tokens_of()
    expected = hf_logits(hf_model(case), tokens)
    assert (hf_logits(model, tokens) - expected).abs().max() < 1e-6
    again = load_model(tmp_path)
    assert again.config == decoder.config
    assert_same_weights(again, decoder)


@pytest.mark.parametrize("case", CASES)
def test_every_element_of_every_parameter_is_one_piece(case, root):
    config = read_config(hf_folder(case, root))
    counts = {name: torch.zeros(p.shape) for name, p in Decoder(config).named_parameters()}
    for piece in families.pieces(config):
        part_of(counts, piece).add_(1)
    for name, count in counts.items():
        assert bool((count == 1).all()), name


def test_a_sharded_folder_round_trips_and_loads_in_transformers(tmp_path, root):
    import transformers

    decoder = load_model(hf_folder("qwen3", root))
    save_model(decoder, tmp_path, max_shard_bytes=9_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(path.stat().st_size < 20_000 for path in tmp_path.glob("*.safetensors"))
    assert_same_weights(load_model(tmp_path), decoder)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    difference = hf_logits(model, tokens_of()) - prefill_logits(decoder, tokens_of())
    assert difference.abs().max() < LIMIT


def test_a_folder_sharded_by_transformers_is_read(tmp_path):
    model = hf_model("gpt2")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    difference = prefill_logits(load_model(tmp_path), tokens_of()) - hf_logits(model, tokens_of())
    assert difference.abs().max() < LIMIT


def test_saving_over_another_model_leaves_only_the_new_one(tmp_path):
    one, two = (random_decoder(tiny(), seed=seed) for seed in (1, 2))
    save_model(one, tmp_path, max_shard_bytes=9_000)
    save_model(two, tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert_same_weights(load_model(tmp_path), two)
    save_model(one, tmp_path, max_shard_bytes=9_000)
    assert_same_weights(load_model(tmp_path), one)


def test_a_checkpoint_without_its_prefix_is_read(root, tmp_path):
    """A bare GPT-2 as the original one: no ``transformer.``, and mask buffers among the weights."""
    shutil.copytree(hf_folder("gpt2", root), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): t.clone() for name, t in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(bare, tmp_path / "model.safetensors")
    assert_same_weights(load_model(tmp_path), load_model(hf_folder("gpt2", root)))


def test_dtypes_convert_both_ways(folder, tmp_path):
    exact = load_model(folder)
    half = load_model(folder, dtype=torch.bfloat16)
    for a, b in zip(exact.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)
    save_model(exact, tmp_path / "half", dtype=torch.bfloat16)
    assert read_config(tmp_path / "half").dtype == "bfloat16"
    assert_same_weights(load_model(tmp_path / "half"), half)


def test_the_official_package_reads_what_is_written(folder):
    decoder = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == len(list(families.pieces(decoder.config)))
    parameters = dict(decoder.named_parameters())
    for piece in families.pieces(decoder.config):
        assert torch.equal(tensors[piece.name], part_of(parameters, piece)), piece.name


def test_reading_needs_no_second_copy_of_the_model(tmp_path):
    """Peak resident memory grows by the weights, not by twice the weights."""
    config = tiny(hidden_size=1024, intermediate_size=4096, head_dim=64, num_layers=4)
    save_model(random_decoder(config), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 200 << 20
    assert 0.9 * size < peak_growth_of_loading(tmp_path) < size + (48 << 20)


BROKEN = {
    "no folder": (lambda f: shutil.rmtree(f), "model folder: expected a folder with config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "a file config.json, got none"),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json: expected",
    ),
    "config not an object": (lambda f: (f / "config.json").write_text("[]"), "a JSON object"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "UTF-8"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "a file model.safetensors"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "the file is cut"),
    "cut file": (
        lambda f: os.truncate(
            f / "model.safetensors", (f / "model.safetensors").stat().st_size - 9
        ),
        "the file is cut",
    ),
    "added bytes": (lambda f: (f / "model.safetensors").open("ab").write(b"12345678"), "added"),
    "pickled only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin.*pickled code",
    ),
    "pipe": (
        lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")),
        "a regular file",
    ),
    "link that leads out": (
        lambda f: (
            (f / "config.json").rename(f.parent / "elsewhere"),
            (f / "config.json").symlink_to(f.parent / "elsewhere"),
        ),
        "inside the model folder",
    ),
    "quantized": (
        lambda f: edit(f / "config.json", lambda c: c | {"quantization_config": {"bits": 4}}),
        "quantized checkpoints are not read",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_gives_one_clear_error(what, folder):
    spoil, message = BROKEN[what]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def rewrite(folder, change) -> None:
    """Put other tensors into the folder's file."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")


NORM = "model.layers.1.input_layernorm.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({KEY: torch.zeros(16, 31)}), rf"{KEY} shape: .*\[16, 32\].*\[16, 31\]"),
        (lambda t: t.update({KEY: torch.zeros(32, 16)}), rf"{KEY} shape"),
        (lambda t: t.update({NORM: torch.zeros(())}), rf"{NORM} shape: .*\[32\].*\[\]"),
        (lambda t: t.update({NORM: torch.zeros(32).int()}), rf"{NORM} dtype: .*torch.int32"),
        (lambda t: t.update({NORM: torch.zeros(32).to(torch.float8_e4m3fn)}), "float8"),
        (lambda t: t.pop(NORM) is None, f"no tensor {NORM}"),
        (lambda t: {"a.b": torch.zeros(3)}, "no tensor .*embed_tokens.*and more"),
        (lambda t: t.update({"model.layers.0.extra": torch.zeros(1)}), "layers.0.extra"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}), "layers.2"),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "x\0y"]
)
def test_an_index_cannot_name_a_file_outside_the_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {NORM: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a plain name inside the model folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map: expected an object"),
        ({"weight_map": []}, "weight_map: expected an object"),
        ({"weight_map": {"a": 3}}, "file names as strings"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors, got none"),
    ],
)
def test_a_broken_index_gives_one_clear_error(folder, index, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    shutil.copy(folder / "model.safetensors", folder / "one.safetensors")
    (folder / "model.safetensors").rename(folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="one file holding it"):
        load_model(folder)


def test_the_links_of_a_hugging_face_cache_are_followed(folder):
    """snapshots/REVISION/NAME links to blobs/DIGEST beside it."""
    store = folder.parent / "models--a--b"
    snapshot, blobs = store / "snapshots" / "0123", store / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert_same_weights(load_model(snapshot), load_model(folder))


def test_end_of_sequence_ids_come_from_the_generation_config(folder):
    edit(folder / "config.json", lambda c: c | {"eos_token_id": 5})
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert read_config(folder).eos_token_ids == (7, 9)
    (folder / "generation_config.json").unlink()
    assert read_config(folder).eos_token_ids == (5,)
