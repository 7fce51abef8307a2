import pytest
import torch

from blocks.sharding import Cut, cut_tensor
from recipes.model import Decoder, ModelConfig
from recipes.model.tensor_parallel_cuts import tensor_parallel_cuts
from recipes.train.checkpoint import Checkpoint, Part, load_checkpoint, save_checkpoint
from tests.train.checkpoint.ranks import on_ranks
from tests.train.checkpoint.samples import equal

CONFIG = ModelConfig(
    family="llama",
    vocab_size=20,
    hidden_size=24,
    intermediate_size=20,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    max_positions=8,
)


def parts(state, num_ranks: int, rank: int):
    """What a tensor-parallel rank has, values of its own and the parts that name them."""
    cuts = tensor_parallel_cuts(CONFIG, num_ranks, vocabulary=True)
    local = {n: cut_tensor(t, cuts[n], rank) if n in cuts else t for n, t in state.items()}
    named = {n: Part.of_cut(t, cuts[n], rank) if n in cuts else t for n, t in local.items()}
    return local, named


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 6), (3, 2), (6, 1), (6, 3)])
def test_tensor_parallel_layouts_are_read_by_each_other(tmp_path, before, after):
    generator = torch.Generator().manual_seed(before)
    shapes = Decoder(CONFIG, device="meta").state_dict()
    whole = {n: torch.randn(t.shape, generator=generator) for n, t in shapes.items()}

    def save(ranks):
        _, named = parts(whole, before, ranks.rank)
        return save_checkpoint(tmp_path, Checkpoint(1, named, {}), ranks=ranks)

    folder = on_ranks(before, save)[0]
    assert not isinstance(folder, Exception), folder
    found = load_checkpoint(folder)
    assert all(equal(found.tensors[name], tensor) for name, tensor in whole.items())
    for rank in range(after):
        wanted, _ = parts(whole, after, rank)
        local, named = parts(
            {n: torch.full_like(t, torch.nan) for n, t in whole.items()}, after, rank
        )
        found.tensors.read_into(named)
        assert all(equal(local[name], wanted[name]) for name in wanted)


def test_a_run_held_twice_is_written_once_and_read_twice(tmp_path):
    cut = Cut.of_units(0, 2, [[0, 0, 1], [1, 2, 2]])
    whole = torch.arange(12.0).view(6, 2)

    def save(ranks):
        part = Part.of_cut(cut_tensor(whole, cut, ranks.rank), cut, ranks.rank)
        return save_checkpoint(tmp_path, Checkpoint(1, {"w": part}, {}), ranks=ranks)

    folder = on_ranks(2, save)[0]
    assert not isinstance(folder, Exception), folder
    found = load_checkpoint(folder).tensors
    assert equal(found["w"], whole)
    assert len(found.index["w"].pieces) == 3
    for rank in range(2):
        local = torch.full((6, 2), torch.nan)
        found.read_into({"w": Part.of_cut(local, cut, rank)})
        assert equal(local, cut_tensor(whole, cut, rank))


def test_a_part_of_another_shape_and_arithmetic_are_refused():
    cut = Cut.even(0, 6, 2)
    with pytest.raises(ValueError, match=r"\[3, 2\], got \[2, 2\]"):
        Part.of_cut(torch.zeros(2, 2), cut, 0)
    with pytest.raises(NotImplementedError, match="only saved"):
        torch.add(Part.of_cut(torch.zeros(3, 2), cut, 0), 1)
