"""The safetensors reader against the official package, and against thousands of broken files."""

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from recipes.model.tensor_file import DTYPES, TensorFile
from recipes.model.write_tensors import Named, write_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(2.5),
}


def read(path) -> dict[str, torch.Tensor]:
    with TensorFile(path) as file:
        out = {n: torch.empty(e.shape, dtype=e.dtype) for n, e in file.entries.items()}
        for name, tensor in out.items():
            file.read_into(name, tensor)
    return out


def accepted_by_the_official_package(path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
    except (SafetensorError, OSError, OverflowError, RuntimeError):
        return False
    return True


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read_as_the_official_package_writes_it(tmp_path, name):
    tensor = torch.randint(0, 2, (3, 5)).to(DTYPES[name])
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"x": tensor}))
    assert torch.equal(read(path)["x"].view(torch.uint8), tensor.view(torch.uint8))


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kept=st.sampled_from([torch.float32, torch.bfloat16]),
    transposed=st.booleans(),
)
def test_what_is_written_is_read_back(tmp_path_factory, shape, dtype, kept, transposed):
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    view = tensor.transpose(0, -1) if transposed and shape else tensor
    write_tensors(path, [Named("one", view, kept), Named("two", tensor, dtype)])
    found = read(path)
    assert torch.equal(found["one"], view.to(kept))
    assert torch.equal(found["two"], tensor)
    assert accepted_by_the_official_package(path)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]  # nothing left over


def test_reading_converts_dtype_and_layout_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.model.tensor_file.STAGING_BYTES", 40)
    path = tmp_path / "x.safetensors"
    tensor = torch.randn(7, 6)
    path.write_bytes(save({"x": tensor}))
    out = torch.full((6, 7), torch.nan, dtype=torch.bfloat16)
    with TensorFile(path) as file:
        file.read_into("x", out.T)
    assert torch.equal(out, tensor.T.bfloat16())


BASE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "header longer than the file": (5000).to_bytes(8, "little") + b"{}",
    "header of 2^63": (1 << 63).to_bytes(8, "little") + b"{}",
    "header over 100 MB": (101 << 20).to_bytes(8, "little") + b"{}",
    "no header": bytes(8),
    "seven bytes": bytes(7),
    "not JSON": with_header(b"{'a': 1}"),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "not an object": with_header([1]),
    "deep nesting": with_header(b"[" * 100_000),
    "huge number": with_header(b'{"a": ' + b"9" * 5000 + b"}"),
    "same key twice": with_header(b'{"a": 1, "a": 1}'),
    "entry not an object": with_header({"a": 3}),
    "missing key": with_header({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "extra key": with_header({"a": BASE | {"more": 1}}, bytes(8)),
    "unknown dtype": with_header({"a": BASE | {"dtype": "F33"}}, bytes(8)),
    "dtype not a string": with_header({"a": BASE | {"dtype": ["F32"]}}, bytes(8)),
    "negative shape": with_header({"a": BASE | {"shape": [-2]}}, bytes(8)),
    "shape of floats": with_header({"a": BASE | {"shape": [2.0]}}, bytes(8)),
    "shape of booleans": with_header({"a": BASE | {"shape": [True, 2]}}, bytes(8)),
    "shape overflow": with_header({"a": BASE | {"shape": [1 << 62, 4]}}, bytes(8)),
    "size mismatch": with_header({"a": BASE | {"shape": [3]}}, bytes(8)),
    "end before start": with_header({"a": BASE | {"data_offsets": [8, 0]}}, bytes(8)),
    "negative offset": with_header({"a": BASE | {"data_offsets": [-8, 0]}}, bytes(8)),
    "hole": with_header({"a": BASE | {"data_offsets": [4, 12]}}, bytes(12)),
    "overlap": with_header({"a": BASE, "b": BASE | {"data_offsets": [4, 12]}}, bytes(12)),
    "cut data": with_header({"a": BASE}, bytes(7)),
    "extra tail": with_header({"a": BASE}, bytes(9)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_gives_one_error_that_names_it(tmp_path, what):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BROKEN[what])
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        read(path)


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS))
    with TensorFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 60)
        with pytest.raises(ValueError, match="the file was cut"):
            file.read_into("a.weight", torch.empty(3, 4))


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite a little of a file, most often in its header."""
    spot = draw.randrange(len(data) if draw.random() < 0.2 else min(len(data), 300))
    match draw.randrange(5):
        case 0:
            return data[:spot] + bytes([data[spot] ^ (1 << draw.randrange(8))]) + data[spot + 1 :]
        case 1:
            return data[:spot]
        case 2:
            return data[:spot] + draw.randbytes(draw.randint(1, 9)) + data[spot:]
        case 3:
            stop = spot + draw.randint(1, 40)
            return data[:stop] + data[spot:]
        case _:
            digits = draw.choice([b"0", b"-1", b"9" * 20, b"null", b"[]", b'"', b"1e400"])
            return data[:spot] + digits + data[spot + len(digits) :]


def check_mutations(path, count: int) -> None:
    """No crash, one ValueError, and never more lenient than the official package."""
    whole = save(TENSORS)
    draw = random.Random(0)
    refused = 0
    for _ in range(count):
        path.write_bytes(mutate(whole, draw))
        message = ""
        try:
            read(path)
        except ValueError as error:
            message = str(error)
        refused += bool(message)
        assert "x.safetensors" in message or accepted_by_the_official_package(path)
    assert refused > count // 3


def test_mutated_files_give_one_error_each(tmp_path):
    check_mutations(tmp_path / "x.safetensors", 500)


@pytest.mark.nightly
def test_ten_thousand_mutated_files_give_one_error_each(tmp_path):
    check_mutations(tmp_path / "x.safetensors", 10_000)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = save(TENSORS)
    for stop in range(len(whole)):
        path.write_bytes(whole[:stop])
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read(path)
