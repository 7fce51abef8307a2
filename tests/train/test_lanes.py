import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline.gradient_sums import tree_sum
from recipes.train import lanes
from recipes.train.lanes import LaneSums, tree_sum_across


@given(depth=st.integers(0, 5), seed=st.integers(0, 99))
def test_lanes_one_after_another_are_summed_as_a_tree(depth, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(3, generator=generator) for _ in range(2**depth)]
    sums = LaneSums()
    for part in parts:
        sums.add([part.clone()])
    (total,) = sums.total()
    assert torch.equal(total, tree_sum(parts))


class Group:
    """Ranks as threads that swap tensors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rank = threading.local()
        self.boxes: dict[tuple[int, int], list[torch.Tensor]] = {}
        self.changed = threading.Condition()

    def exchange(self, sent, got, partner, group) -> None:
        me = self.rank.value
        with self.changed:
            self.boxes.setdefault((me, partner), []).append(sent.clone())
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.boxes.get((partner, me)), timeout=10)
            got.copy_(self.boxes[partner, me].pop(0))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("num_elements", [1, 2, 3, 17])
def test_processes_add_up_the_top_of_the_same_tree(monkeypatch, size, num_elements):
    group = Group(size)
    monkeypatch.setattr(lanes, "_exchange", group.exchange)
    monkeypatch.setattr(lanes.dist, "get_world_size", lambda g: g.size)
    monkeypatch.setattr(lanes.dist, "get_rank", lambda g: g.rank.value)
    generator = torch.Generator().manual_seed(size)
    parts = [torch.randn(num_elements + 2, generator=generator) for _ in range(size)]
    found: dict[int, torch.Tensor] = {}

    def work(rank: int) -> None:
        group.rank.value = rank
        mine = parts[rank].clone()
        tree_sum_across([mine[:2], mine[2:]], group)
        found[rank] = mine

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    expected = tree_sum(parts)
    assert sorted(found) == list(range(size))
    assert all(torch.equal(total, expected) for total in found.values())
