"""PrefixCache by example: chains, namespaces, collisions (histories: test_machines.py)."""

import hashlib

import pytest

from blocks.kv import PrefixCache


def fill(cache: PrefixCache, tokens: list[int], first_block: int, namespace: str = ""):
    count = len(tokens) // cache.block_size
    return cache.insert(None, tokens, range(first_block, first_block + count), namespace)


def hits(cache: PrefixCache, tokens: list[int], namespace: str = "") -> list[int]:
    return [prefix.block_ids[0] for prefix in cache.match(tokens, namespace)]


def test_the_longest_run_of_full_blocks_is_found():
    cache = PrefixCache(2)
    fill(cache, [1, 2, 3, 4, 5, 6], first_block=10)
    assert hits(cache, [1, 2, 3, 4, 5]) == [10, 11]
    assert hits(cache, [1, 2, 3, 4, 5, 6, 7]) == [10, 11, 12]
    assert hits(cache, [1, 2, 9, 9, 5, 6]) == [10]
    assert hits(cache, [3, 4]) == []
    assert hits(cache, [1]) == []


def test_the_same_block_after_another_prefix_is_another_block():
    cache = PrefixCache(2)
    fill(cache, [1, 2, 7, 8], first_block=10)
    fill(cache, [3, 4, 7, 8], first_block=20)
    assert hits(cache, [3, 4, 7, 8]) == [20, 21]
    assert hits(cache, [1, 2, 7, 8]) == [10, 11]


@pytest.mark.parametrize("namespaces", [("", "a"), ("a", "b"), ("a", "a\x00"), ("\ud800", "?")])
def test_a_namespace_changes_the_whole_chain(namespaces):
    cache = PrefixCache(2)
    fill(cache, [1, 2, 3, 4], 10, namespaces[0])
    assert hits(cache, [1, 2, 3, 4], namespaces[1]) == []
    assert hits(cache, [1, 2, 3, 4], namespaces[0]) == [10, 11]


def test_names_are_the_same_in_every_process():
    """sha256 over the parent's name and the tokens as little-endian 64-bit integers."""
    cache = PrefixCache(2)
    name = hashlib.sha256(b"namespace:tenant").digest()
    for block in ([1, 2], [3, -1]):
        packed = b"".join(token.to_bytes(8, "little", signed=True) for token in block)
        name = hashlib.sha256(name + packed).digest()
    prefix = fill(cache, [1, 2, 3, -1], 10, "tenant")
    assert prefix.digest == name


def test_a_digest_that_always_collides_gives_no_wrong_block():
    """All 64 prompts of three tokens, every second one cached, against comparing the prompts."""
    cache = PrefixCache(1, digest=lambda data: b"")
    prompts = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    for number, prompt in enumerate(prompts):
        if number % 2:
            fill(cache, prompt, first_block=3 * number)
    for prompt in prompts:
        found = hits(cache, prompt)
        contents = [prompts[block // 3][: block % 3 + 1] for block in found]
        assert contents == [prompt[: n + 1] for n in range(len(found))]
        assert len(found) == (3 if prompts.index(prompt) % 2 else 2)


def test_equal_contents_are_kept_side_by_side():
    cache = PrefixCache(2)
    fill(cache, [1, 2, 3, 4], first_block=10)
    fill(cache, [1, 2, 3, 4], first_block=20)
    assert [p.block_ids for p in cache.match([1, 2, 3, 4])] == [[10, 20], [11, 21]]
    cache.forget(10)
    assert hits(cache, [1, 2, 3, 4]) == [20, 11]


def test_a_repeated_look_up_computes_no_digest():
    calls = []
    cache = PrefixCache(2, digest=lambda data: calls.append(data) or hashlib.sha256(data).digest())
    prompt = list(range(20))
    fill(cache, prompt, first_block=10)
    cache.match(prompt)
    calls.clear()
    assert len(cache.match([*prompt, 5])) == 10
    assert len(calls) == 1  # the namespace


def test_a_gap_ends_the_match_until_it_is_filled_again():
    cache = PrefixCache(2)
    fill(cache, [1, 2, 3, 4], first_block=10)
    cache.forget(10)
    assert hits(cache, [1, 2, 3, 4]) == []
    fill(cache, [1, 2], first_block=30)
    assert hits(cache, [1, 2, 3, 4]) == [30, 11]


def test_forgetting_everything_leaves_nothing_behind():
    cache = PrefixCache(2)
    for number in range(5):
        fill(cache, [1, 2, number, 4], 10 * number, namespace=str(number % 2))
    for block in range(60):
        cache.forget(block)
    assert len(cache) == 0
    assert not cache._index
    cache.check_invariants()


@pytest.mark.parametrize("bad", [[1], [1, 2, 3], [], [1, 1 << 63]])
def test_what_is_no_full_block_of_tokens_is_refused(bad):
    cache = PrefixCache(2)
    with pytest.raises(ValueError, match="tokens: expected"):
        cache.insert(None, bad, [1])
    assert len(cache) == 0
    cache.check_invariants()


def test_a_block_needs_a_size():
    with pytest.raises(ValueError, match="block_size: expected a positive whole number, got 0"):
        PrefixCache(0)
