"""``python -m recipes.model``: what a folder holds, or one line saying what is wrong with it."""

import pytest
import torch

from recipes.model import __main__ as main
from recipes.model import save_model
from tests.model.test_decoder import random_decoder, tiny


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["recipes.model", *arguments])
        code = main.main()
        return code, *capsys.readouterr()

    return run


def test_it_tells_size_cache_and_fit(run, tmp_path):
    decoder = random_decoder(tiny(tie_embeddings=True))
    save_model(decoder, tmp_path)
    code, out, _ = run(str(tmp_path), "--kv-budget", "1MiB")
    assert code == 0
    assert "family = llama" in out
    assert f"{sum(p.numel() for p in decoder.parameters()):,}" in out
    assert "256 B a token in float32" in out  # 2 x 2 layers x 2 heads x 8 x 4 bytes
    assert "holds 4,096 tokens: 64.00 full contexts, or 4 of 1,024" in out


def test_a_broken_folder_is_one_line(run, tmp_path):
    save_model(random_decoder(tiny()), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"123")
    code, out, err = run(str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith("error: model.safetensors: expected")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("5", 5), ("2K", 2048), ("1.5GiB", 3 << 29), ("3 mb", 3 << 20)]
)
def test_sizes_are_read(text, expected):
    assert main.parse_bytes(text) == expected


def test_a_size_that_is_none_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("x", "--kv-budget", "lots")
    assert "expected a size such as 512M" in capsys.readouterr().err


def test_a_model_larger_than_memory_is_described():
    huge = tiny(num_layers=800, hidden_size=8192, intermediate_size=28672, head_dim=2048)
    lines = main.describe(huge, torch.bfloat16, 1 << 30)
    assert " TiB in bfloat16" in lines[1]
