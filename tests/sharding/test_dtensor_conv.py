"""Why convolutions have rules of their own: what DTensor makes of them.

Once torch is right about one of these, its test here fails, and the list gets shorter.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._local_tensor import LocalTensorMode
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import init_device_mesh as make_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from blocks.sharding import Mesh, audit_rule, rules

X = torch.arange(4 * 4 * 8 * 8).reshape(4, 4, 8, 8).double().cos()
WEIGHT = torch.arange(8 * 4 * 3 * 3).reshape(8, 4, 3, 3).double().sin()


@pytest.fixture(autouse=True)
def four_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def is_right(x: Placement, weight: Placement) -> bool:
    """Whether a convolution of tensors that lie so is what it should be, on four local ranks."""
    try:
        with LocalTensorMode(4):
            mesh = make_mesh("cpu", (4,))
            parts = distribute_tensor(X, mesh, [x]), distribute_tensor(WEIGHT, mesh, [weight])
            found: Any = F.conv2d(*parts, padding=1)
            held = found.full_tensor().reconcile()
    except (AssertionError, AttributeError, RuntimeError):
        return False  # the ranks hold different tensors, or none
    expected = F.conv2d(X, WEIGHT, padding=1)
    return held.shape == expected.shape and torch.allclose(held, expected)


def test_a_cut_batch_is_right() -> None:
    assert is_right(Shard(0), Replicate())


@pytest.mark.parametrize(
    ("x", "weight"),
    [(Replicate(), Shard(0)), (Shard(1), Shard(1)), (Shard(2), Replicate())],
    ids=["out", "in", "place"],
)
def test_dtensor_is_still_wrong(x: Placement, weight: Placement) -> None:
    assert not is_right(x, weight), "torch is right now: take it off this list"


def test_the_rule_is_right_about_them() -> None:
    output = F.conv2d(X, WEIGHT, padding=1)
    rule = rules.conv_rule(X.shape, WEIGHT.shape, output.shape)
    tried = audit_rule(rule, [X, WEIGHT], lambda x, w: F.conv2d(x, w, padding=1), Mesh.of(a=4))
    assert tried == 1 + 3 + 2  # replicated; batch, out, in; addends of either
