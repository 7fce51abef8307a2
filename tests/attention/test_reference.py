"""The specification itself, against torch's own attention in float64 and by its equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from blocks.attention import reference
from tests.attention.paged_case import paged_case, running_sums
from tests.numerics import assert_close


def torch_attention(q, k, v, window=None, causal=True):
    """[query_len, num_heads, head_dim] by torch in float64, queries at the tail of the keys."""
    distance = torch.arange(len(q))[:, None] + (len(k) - len(q)) - torch.arange(len(k))
    visible = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible &= distance < window
    q, k, v = (rearrange(t.double(), "token head dim -> 1 head token dim") for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return rearrange(out, "1 head token dim -> token head dim")


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_equals_torch_attention(heads, window):
    case = paged_case([3, 1, 7], [3, 9, 20], num_heads=heads[0], num_kv_heads=heads[1], head_dim=40)
    expected = torch.cat(
        [
            torch_attention(q, k, v, window)
            for q, k, v in zip(case.query.split([3, 1, 7]), case.keys, case.values, strict=True)
        ]
    )
    assert_close(reference.prefill(*case.packed, window=window), expected, dtype=torch.float32)
    assert_close(reference.paged_extend(*case.paged, window=window), expected, dtype=torch.float32)


def test_without_causal_every_key_is_seen():
    q, k, v = torch.randn(3, 2, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    out = reference.prefill(q, k, v, running_sums([3]), running_sums([5]), causal=False)
    assert_close(out, torch_attention(q, k, v, causal=False), dtype=torch.float32)


def test_lse_is_the_natural_log_of_the_denominator():
    q, k, v = torch.randn(1, 1, 8), torch.randn(5, 1, 8), torch.randn(5, 1, 8)
    out = reference.prefill(q, k, v, running_sums([1]), running_sums([5]), return_lse=True)
    scores = (k[:, 0] @ q[0, 0]) / math.sqrt(8)
    assert_close(out.lse[0, 0], scores.exp().sum().log())


def test_a_sink_takes_weight_and_gives_nothing():
    q, k, v = torch.randn(1, 1, 8), torch.randn(5, 1, 8), torch.randn(5, 1, 8)
    args = (q, k, v, running_sums([1]), running_sums([5]))
    plain = reference.prefill(*args, return_lse=True)
    sunk = reference.prefill(*args, sinks=plain.lse[0].clone(), return_lse=True)
    assert_close(sunk.output, plain.output / 2)  # a sink as heavy as all keys together
    assert_close(sunk.lse, plain.lse + math.log(2))


def test_alibi_takes_slope_times_distance_off():
    q, k, v = torch.zeros(1, 1, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)
    args = (q, k, v, running_sums([1]), running_sums([3]))
    out = reference.prefill(*args, alibi_slopes=torch.tensor([math.log(2)]))
    assert_close(out[0, 0], (v[0, 0] / 4 + v[1, 0] / 2 + v[2, 0]) / 1.75)


def test_softcap_bounds_the_scores():
    q, k, v = torch.full((1, 1, 8), 1e4), torch.full((2, 1, 8), 1e4), torch.randn(2, 1, 8)
    args = (q, k, v, running_sums([1]), running_sums([2]))
    out = reference.prefill(*args, softcap=30.0, return_lse=True)
    assert_close(out.lse, torch.full((1, 1), 30 + math.log(2)))


def test_a_query_that_sees_nothing_gets_zeros_and_minus_infinity():
    case = paged_case([1, 1], [0, 4])
    out = reference.paged_decode(*case.paged[:5], return_lse=True)
    assert (out.output[0] == 0).all()
    assert (out.lse[0] == -math.inf).all()
    assert torch.isfinite(out.output[1]).all()
    more_queries_than_keys = reference.prefill(
        torch.randn(3, 1, 8),
        torch.randn(1, 1, 8),
        torch.randn(1, 1, 8),
        running_sums([3]),
        running_sums([1]),
    )
    assert (more_queries_than_keys[:2] == 0).all()


def test_gradients_are_right_and_finite_with_empty_rows():
    q, k, v = (torch.randn(n, 2, 4, dtype=torch.float64, requires_grad=True) for n in (5, 3, 3))
    bounds = running_sums([3, 2]), running_sums([1, 2])

    def run(q, k, v):
        return reference.prefill(q, k, v, *bounds, softcap=3.0)

    assert torch.autograd.gradcheck(run, (q, k, v))


def test_no_sequences_give_no_rows():
    case = paged_case([], [])
    assert reference.paged_extend(*case.paged).shape == (0, 4, 64)


def test_merging_ignores_what_an_empty_state_holds():
    outputs = torch.stack([torch.full((1, 1, 4), math.nan), torch.ones(1, 1, 4)])
    lses = torch.tensor([[[-math.inf]], [[0.5]]])
    merged = reference.merge_states(outputs, lses)
    assert (merged.output == 1).all()
    assert merged.lse.item() == 0.5
    nothing = reference.merge_states(outputs, torch.full((2, 1, 1), -math.inf))
    assert (nothing.output == 0).all()
    assert nothing.lse.item() == -math.inf
