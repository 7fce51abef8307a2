"""``tree_decode``: a tree is every one of its paths at once."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from blocks.attention import (
    paged_decode,
    paged_extend,
    reference,
    tree_decode,
    tree_mask_from_parents,
)
from tests.attention.paged_case import paged_case, running_sums
from tests.attention.quantised_case import KINDS, STORED, quantised_case
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = [
    {},
    {"window": 1},
    {"window": 5},
    {"alibi_slopes": torch.linspace(0.1, 1.0, 4)},
    {"window": 30, "softcap": 4.0, "sinks": torch.linspace(-1, 1, 4), "scale": 0.2},
    {"window": 3, "alibi_slopes": torch.linspace(0.1, 1.0, 4)},
]


def random_parents(num_nodes: int, seed: int) -> list[int]:
    """A forest of draft tokens, parents first."""
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(-1, i, (1,), generator=generator)) for i in range(num_nodes)]


def masks(*parents: list[int]) -> torch.Tensor:
    joined = torch.tensor([p for tree in parents for p in tree], dtype=torch.int32)
    return tree_mask_from_parents(joined, running_sums([len(tree) for tree in parents]))


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def decode_path(case, s: int, committed: int, path: list[int], row: int, **options):
    """The last token of one path, decoded as a plain sequence of the committed tokens and it."""
    kept = list(range(committed)) + [committed + node for node in path]
    keys, values = (t[s][kept][None].contiguous() for t in (case.keys, case.values))
    lens = torch.tensor([len(kept)], dtype=torch.int32)
    table = torch.zeros(1, 1, dtype=torch.int32)
    query = case.query[row : row + 1].float()
    wide = keys.float(), values.float()
    return reference.paged_decode(query, *wide, table, lens, return_lse=True, **options)


trees = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 15, 16, 63, 70])), min_size=1, max_size=3
)
shapes = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([16, 24, 64]),
        "block_size": st.sampled_from([1, 5, 16]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 99),
    }
)


def check_paths(impl, sizes, shape, options, **how):
    parents = [random_parents(n, shape.get("seed", 0) + s) for s, (n, _) in enumerate(sizes)]
    query_lens = [n for n, _ in sizes]
    case = paged_case(query_lens, [n + c for n, c in sizes], **shape)
    mask = masks(*parents)
    options = {**options, "return_lse": True}
    actual = tree_decode(*case.paged, tree_mask=mask, impl=impl, **how, **options)
    row = 0
    del options["return_lse"]
    for s, (_, committed) in enumerate(sizes):
        for node in range(len(parents[s])):
            path = path_to(node, parents[s])
            expected = decode_path(case, s, committed, path, row, **options)
            ours = actual.output[row : row + 1]
            assert_close(ours, expected.output, what=f"node {node}", slack=2)  # few numbers each
            assert_close(actual.lse[row : row + 1], expected.lse, slack=3)
            row += 1


@pytest.mark.parametrize("impl", ["native", "reference"])
@settings(max_examples=25)
@given(trees, shapes, st.sampled_from(SETTINGS))
def test_every_path_is_a_plain_sequence(impl, sizes, shape, options):
    check_paths(impl, sizes, shape, options)


@settings(max_examples=4)
@given(trees, shapes, st.sampled_from(SETTINGS), st.sampled_from([None, 1, 2, 5]))
@example([(9, 70), (0, 5), (3, 0)], {"dtype": torch.bfloat16}, SETTINGS[-1], 3)
@example([(9, 70), (2, 1)], {"num_heads": 6, "num_kv_heads": 1}, {}, None)
def test_triton_every_path_is_a_plain_sequence(sizes, shape, options, num_splits):
    check_paths("triton", sizes, shape, options, num_splits=num_splits)


@pytest.mark.parametrize("options", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_a_chain_is_an_extend_to_the_bit(dtype, options):
    case = paged_case([5, 1, 64], [700, 30, 64], dtype=dtype)
    mask = masks(*(list(range(-1, n - 1)) for n in (5, 1, 64)))
    settings = {**options, "return_lse": True, "impl": "native"}
    chain, extended = (
        tree_decode(*case.paged, tree_mask=mask, **settings),
        paged_extend(*case.paged, **settings),
    )
    assert torch.equal(chain.output, extended.output)
    assert torch.equal(chain.lse, extended.lse)


@pytest.mark.parametrize("options", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_triton_a_chain_is_an_extend(options):
    case = paged_case([5, 1], [140, 30])
    mask = masks(list(range(-1, 4)), [-1])
    chain = tree_decode(*case.paged, tree_mask=mask, impl="triton", **options)
    assert_close(chain, paged_extend(*case.paged, impl="reference", **options))


def test_sixty_four_drafts_use_every_bit():
    parents = random_parents(64, 3)
    parents[63] = 62
    case = paged_case([64], [64 + 20])
    mask = masks(parents)
    assert int(mask[63]) < 0
    expected = reference.tree_decode(*case.paged, tree_mask=mask, window=40)
    for impl in ("native", "triton"):
        assert_close(tree_decode(*case.paged, tree_mask=mask, window=40, impl=impl), expected)


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_quantised_caches(impl, stored):
    for k_kind, v_kind in zip(KINDS, reversed(KINDS), strict=True):
        case, scales, meant = quantised_case([4, 2], [70, 20], stored, k_kind, v_kind)
        mask = masks([-1, 0, 0, 1], [-1, -1])
        expected = reference.tree_decode(*meant.paged, tree_mask=mask)
        assert_close(tree_decode(*case.paged, tree_mask=mask, impl=impl, **scales), expected)


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_a_row_depends_on_its_own_sequence_alone(impl):
    case = paged_case([3, 7, 1], [530, 40, 1100], head_dim=16)
    trees = [random_parents(n, n) for n in (3, 7, 1)]
    together = tree_decode(*case.paged, tree_mask=masks(*trees), impl=impl, batch_invariant=True)
    bounds = case.cu_seqlens_q.tolist()
    for s in range(3):
        part = slice(bounds[s], bounds[s + 1])
        alone = tree_decode(
            case.query[part],
            case.key_cache,
            case.value_cache,
            case.block_table[s : s + 1],
            case.seq_lens[s : s + 1],
            running_sums([bounds[s + 1] - bounds[s]]),
            masks(trees[s]),
            impl=impl,
            batch_invariant=True,
        )
        assert torch.equal(alone, together[part])


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_one_draft_is_a_decode(impl):
    case = paged_case([1, 1], [600, 17])
    decoded = paged_decode(*case.paged[:5], impl=impl)
    assert_close(tree_decode(*case.paged, tree_mask=masks([-1], [-1]), impl=impl), decoded)


def test_masks_are_the_ancestors():
    parents = [random_parents(n, n) for n in (0, 1, 9, 64)]
    rows = masks(*parents).tolist()
    expected = [
        sum(1 << node for node in path_to(i, tree)) for tree in parents for i in range(len(tree))
    ]
    assert [row & (2**64 - 1) for row in rows] == expected


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize("bad", [0, 2, 7, -1])
def test_masks_that_are_no_trees_are_refused(impl, bad):
    case = paged_case([2, 2], [20, 17])
    mask = masks([-1, 0], [-1, 0])
    mask[2] = bad
    with pytest.raises(ValueError, match=r"tree_mask\[2\]: expected bit 0 set and none above"):
        tree_decode(*case.paged, tree_mask=mask, impl=impl)


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
def test_more_drafts_than_bits_are_refused(impl):
    case = paged_case([65], [80])
    with pytest.raises(ValueError, match="draft tokens of sequence 0: expected at most 64"):
        tree_decode(*case.paged, tree_mask=torch.ones(65, dtype=torch.int64), impl=impl)


@pytest.mark.parametrize(
    ("parents", "bounds", "message"),
    [
        ([-1, 0, 1], [0, 2, 3], "expected -1 or an earlier token of its sequence .below 0., got 1"),
        ([-1, 1], [0, 2], "expected -1 or an earlier token"),
        ([-7, 0], [0, 2], "expected -1 or an earlier token"),
        ([-1, 0], [0, 1], "cu_seqlens_q: expected running sums from 0 to 2"),
        ([-1, 0], [0, 3, 2], "cu_seqlens_q: expected running sums from 0 to 2"),
        ([-1] * 65, [0, 65], "at most 64 tokens a sequence"),
        ([], [], "cu_seqlens_q: expected running sums from 0 to 0"),
    ],
)
def test_parents_that_make_no_tree_are_refused(
    parents: list[int], bounds: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tree_mask_from_parents(
            torch.tensor(parents, dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32)
        )
