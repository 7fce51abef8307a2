"""Parts of a decoder: read cut from a folder, and the whole decoder when run one after another."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from blocks.sharding import Group, Mesh, all_gather, cut_tensor, run_local
from recipes.model import ModelConfig, dense_attend, load_model, read_config, save_model
from recipes.model.load_part import load_part
from recipes.model.part import DecoderPart
from recipes.model.tensor_parallel_cuts import tensor_parallel_cuts
from tests.model.oracle import CASES, hf_folder
from tests.model.test_decoder import random_decoder, tiny
from tests.model.test_families import LIMIT, prefill_logits, tokens_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


class Place(NamedTuple):
    """As much of a ``Group`` as reading needs."""

    rank: int
    size: int


def stages(config: ModelConfig, num_stages: int) -> list[range]:
    bounds = [config.num_layers * i // num_stages for i in range(num_stages + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("case", CASES)
def test_every_rank_reads_its_part_of_every_tensor(case: str, tp: int, pp: int, root) -> None:
    folder = hf_folder(case, root)
    whole = load_model(folder)
    config = whole.config
    cuts = tensor_parallel_cuts(config, tp, vocabulary=True)
    seen: set[str] = set()
    for (stage, layers), rank in itertools.product(enumerate(stages(config, pp)), range(tp)):
        place: Any = Place(rank, tp)
        part = load_part(folder, layers, stage=stage, num_stages=pp, group=place)
        for name, found in part.named_parameters():
            tied = config.tie_embeddings and name == "head.weight"
            expected = whole.get_parameter("embed.weight" if tied else name)
            if tp > 1 and name in cuts:
                expected = cut_tensor(expected.data, cuts[name], rank)
            assert torch.equal(found, expected), name
            seen.add("embed.weight" if tied else name)
    assert seen == {name for name, _ in whole.named_parameters()}


def run_parts(parts: list[DecoderPart], tokens: Tensor) -> Tensor:
    """Hidden states behind the last of successive parts."""
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    x = None
    for part in parts:
        attend = dense_attend(part.config, bounds)
        x = part(tokens, torch.arange(len(tokens)), attend, x)
    assert x is not None
    return x


@torch.inference_mode()
@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_stages_in_turn_give_the_bits_of_the_whole(case: str, num_stages: int, root) -> None:
    folder = hf_folder(case, root)
    layers = stages(read_config(folder), num_stages)
    for dtype in (torch.float32, torch.bfloat16):
        parts = [
            load_part(folder, held, stage=i, num_stages=num_stages, dtype=dtype)
            for i, held in enumerate(layers)
        ]
        found = parts[-1].logits(run_parts(parts, tokens_of()))
        assert torch.equal(found, prefill_logits(load_model(folder, dtype), tokens_of()))


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_tensor_parallel_stages_differ_by_rounding(case: str, tp: int, root) -> None:
    folder = hf_folder(case, root)
    config = read_config(folder)

    def work(rank: int, groups: Mapping[str, Group]) -> Tensor:
        group = groups["tensor"]
        with torch.inference_mode():
            parts = [
                load_part(folder, held, stage=i, num_stages=2, group=group)
                for i, held in enumerate(stages(config, 2))
            ]
            scores = parts[-1].logits(run_parts(parts, tokens_of()))
            return all_gather(scores, group, 1, size=config.vocab_size)

    found = run_local(Mesh.of(tensor=tp), work)
    expected = prefill_logits(load_model(folder), tokens_of())
    for logits in found:
        assert torch.equal(logits, found[0])
        assert (logits - expected).abs().max() < LIMIT


@pytest.mark.parametrize("pages", [1, 1 << 20])
def test_columns_are_read_by_page_or_with_their_rows(pages, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("recipes.model.tensor_file.PAGE_BYTES", pages)
    whole = random_decoder(tiny())
    save_model(whole, tmp_path)
    cuts = tensor_parallel_cuts(whole.config, 2, vocabulary=True)
    for rank, dtype in itertools.product((0, 1), (torch.float32, torch.bfloat16)):
        place: Any = Place(rank, 2)
        part = load_part(tmp_path, range(whole.config.num_layers), group=place, dtype=dtype)
        for name, found in part.named_parameters():
            expected = whole.get_parameter(name).data
            if name in cuts:
                expected = cut_tensor(expected, cuts[name], rank)
            assert torch.equal(found, expected.to(dtype)), name
