"""Traced models of every family compute what the models compute."""

from pathlib import Path

import pytest
import torch

from recipes.plan.config import PlanConfig
from recipes.plan.families import families, family
from recipes.plan.model import call_of, is_factory
from recipes.plan.trace import trace
from tests.plan.reproduced import SLOW, check_trace

TINY = [name for name in families() if name.endswith(":tiny")]


def check(name: str) -> None:
    torch.manual_seed(0)
    model = family(name)
    module = model.make().double()
    generator = torch.Generator().manual_seed(0)
    inputs = model.inputs(generator=generator, dtype=torch.float64)
    check_trace(name, trace(module, (), inputs), module, inputs)


@pytest.mark.parametrize("name", [name for name in TINY if name not in SLOW])
def test_loss_gradients_and_buffers_are_reproduced(name: str) -> None:
    check(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SLOW)
def test_loss_gradients_and_buffers_are_reproduced_slowly(name: str) -> None:
    check(name)


def test_all_families_are_there() -> None:
    kinds = {name.partition(":")[0] for name in families()}
    assert len(kinds) >= 10
    assert kinds == {name.partition(":")[0] for name in TINY}
    with pytest.raises(ValueError, match="family: expected one of mlp:tiny"):
        family("llama:9b")


def test_families_are_not_hidden_by_modules_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unet", "decoder"):
        (tmp_path / f"{name}.py").write_text("def net(rows):\n    return None, (), {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = ("unet:tiny", "unet:net", "decoder:tiny,num_layers=4", "unet:huge")
    assert [is_factory(name) for name in known] == [False, True, False, True]
    _, _, inputs = call_of(PlanConfig("unet:tiny"), 2)
    assert set(inputs) == {"images", "target"}
    assert call_of(PlanConfig("unet:net"), 2) == (None, (), {})


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("gpt2:small", 124_439_808), ("wide-resnet:250m", 253_950_000), ("llama:8b", 8_030_261_248)],
)
def test_published_sizes(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        module = family(name).make()
    count = sum(p.numel() for p in module.parameters())
    assert abs(count - num_parameters) <= 1e-3 * num_parameters


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in families() if name not in TINY])
def test_every_published_size_is_traced(name: str) -> None:
    model = family(name)
    traced = trace(model.make, (), model.inputs())
    traced.check_invariants()
    big = [
        node.name
        for node in traced.graph.nodes
        if node.role == "op"
        and not any(factor.kind != "whole" for factor in node.rule.factors)
        and any(traced.graph.values[v].num_bytes > 2**20 for v in node.outputs)
    ]
    assert not big, "large tensors that cannot be cut"


@pytest.mark.parametrize("name", ["gpt2:tiny", "llama:tiny"])
def test_no_model_leaves_open_which_loss_is_meant(name: str):
    """transformers takes the one for causal models then, and warns of it at every trace."""
    assert getattr(family(name).make(), "loss_type", "ForCausalLM") == "ForCausalLM"
