import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import Routing, route
from tests.numerics import assert_close

IMPLS = ["reference", "native", "triton"]
num_rows = st.integers(0, 70)
num_experts = st.sampled_from([1, 2, 3, 8, 17, 64])


def logits_of(seed: int, num_tokens: int, num_experts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(num_tokens, num_experts, generator=generator)


def check_order(routing: Routing, num_experts: int) -> None:
    """Everything that follows from the choice, written out."""
    num_tokens, top_k = routing.experts.shape
    rows = sorted(
        (int(expert), token, rank)
        for token, chosen in enumerate(routing.experts.tolist())
        for rank, expert in enumerate(chosen)
    )
    assert routing.tokens.tolist() == [token for _, token, _ in rows]
    places = torch.full((num_tokens, top_k), -1)
    for row, (_, token, rank) in enumerate(rows):
        places[token, rank] = row
    assert torch.equal(routing.places.long(), places)
    bounds = [sum(e < expert for e, _, _ in rows) for expert in range(num_experts + 1)]
    assert routing.offsets.tolist() == bounds
    kinds = (routing.experts, routing.tokens, routing.places, routing.offsets)
    assert all(part.dtype == torch.int32 for part in kinds)
    assert routing.weights.dtype == torch.float32


@given(
    num_tokens=num_rows,
    num_experts=num_experts,
    top_k=st.integers(1, 8),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    normalize=st.booleans(),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    impl=st.sampled_from(IMPLS),
    seed=st.integers(0, 99),
)
def test_choice_weights_and_order(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    scoring,
    normalize: bool,
    with_bias: bool,
    scale: float,
    impl,
    seed: int,
) -> None:
    top_k = min(top_k, num_experts)
    logits = logits_of(seed, num_tokens, num_experts)
    bias = logits_of(seed + 1, 1, num_experts)[0] if with_bias else None
    routing = route(
        logits, top_k, scoring=scoring, normalize=normalize, bias=bias, scale=scale, impl=impl
    )
    wide = logits.double()
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    preference = scores if bias is None else scores + bias
    chosen = preference.topk(top_k).indices
    assert torch.equal(routing.experts.long(), chosen)
    weights = scores.gather(1, chosen)
    weights = weights / weights.sum(-1, keepdim=True) if normalize else weights
    assert_close(routing.weights, weights * scale)
    check_order(routing, num_experts)


@pytest.mark.parametrize("impl", IMPLS)
def test_equals_go_to_the_lower_id_and_nan_comes_last(impl) -> None:
    assert route(torch.zeros(2, 5), 3, impl=impl).experts.tolist() == [[0, 1, 2]] * 2
    logits = torch.tensor([[torch.nan, 1.0, 2.0, torch.nan]])
    chosen = route(logits, 3, scoring="sigmoid", impl=impl).experts.tolist()
    assert chosen == [[2, 1, 0]]
    chosen = route(torch.full((1, 4), torch.nan), 3, impl=impl).experts.tolist()
    assert chosen == [[0, 1, 2]]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_token_chooses_alike_in_any_batch(impl) -> None:
    logits = logits_of(0, 40, 16)
    whole = route(logits, 4, impl=impl)
    for part in (slice(0, 1), slice(7, 9), slice(3, 40)):
        alone = route(logits[part], 4, impl=impl)
        assert torch.equal(alone.experts, whole.experts[part])
        assert torch.equal(alone.weights, whole.weights[part])


@pytest.mark.parametrize("impl", IMPLS)
def test_everyone_may_choose_the_same_expert(impl) -> None:
    logits = torch.zeros(33, 6)
    logits[:, 4] = 1.0
    routing = route(logits, 1, impl=impl)
    assert routing.offsets.tolist() == [0, 0, 0, 0, 0, 33, 33]
    assert routing.tokens.tolist() == list(range(33))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_carry_gradients(scoring, normalize: bool) -> None:
    logits = logits_of(3, 6, 5).double().requires_grad_()

    def weights(logits: torch.Tensor) -> torch.Tensor:
        return route(logits, 2, scoring=scoring, normalize=normalize, scale=1.5).weights

    assert torch.autograd.gradcheck(weights, (logits,))


def test_misuse_is_refused() -> None:
    bare = inspect.unwrap(route)
    with pytest.raises(ValueError, match=r"top_k: expected 1 to 4 \(num_experts\), got 5"):
        bare(torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="top_k: expected 1 to 4"):
        bare(torch.zeros(2, 4), 0)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale: expected a finite number"):
            route(torch.zeros(2, 4), 2, scale=scale)
    with pytest.raises(ValueError, match="scoring: expected one of"):
        bare(torch.zeros(2, 4), 1, scoring="relu")
    with pytest.raises(ValueError, match="router_logits shape"):
        bare(torch.zeros(4), 1)
    with pytest.raises(TypeError, match="router_logits dtype"):
        bare(torch.zeros(2, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=r"bias shape: expected \[4\]"):
        bare(torch.zeros(2, 4), 1, bias=torch.zeros(3))
