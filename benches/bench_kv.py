"""blocks.kv: bookkeeping per operation, and the tensor operations at the shapes of real models."""

import pytest
import torch

from benches.shapes import MODELS
from blocks.kv import (
    BlockManager,
    KVCache,
    copy_blocks_work,
    reference,
    write_kv,
    write_kv_work,
)

BLOCK_SIZE = 16


class DecodeSteps:
    """``num_running`` sequences that each decode one token a step.

    One call is ``BLOCK_SIZE`` steps: every sequence takes one new block and fills one.
    """

    def __init__(self, num_running: int = 256, prompt: int = 96, max_calls: int = 250) -> None:
        blocks_each = prompt // BLOCK_SIZE + max_calls + 2
        self.manager = BlockManager(num_running * blocks_each + 1, BLOCK_SIZE)
        self.num_running = num_running
        self.length = prompt
        end = blocks_each * BLOCK_SIZE
        self.tokens = [[i, *range(1, end)] for i in range(num_running)]
        for number, tokens in enumerate(self.tokens):
            self.manager.allocate(number, tokens, prompt)
            self.manager.commit(number, tokens, prompt)

    def __call__(self) -> None:
        append, commit, tokens = self.manager.append, self.manager.commit, self.tokens
        for length in range(self.length + 1, self.length + BLOCK_SIZE + 1):
            for number in range(self.num_running):
                append(number, length)
                commit(number, tokens[number], length)
        self.length += BLOCK_SIZE

    def check(self) -> None:
        usage = self.manager.usage()
        assert usage.num_logical_tokens == self.num_running * self.length
        assert usage.num_internal_slots == 0
        hit = self.manager.match_prefix([*self.tokens[0][: self.length], 0])
        assert hit == self.length, "every full block was committed"


def bench_append_and_commit(timed):
    steps = DecodeSteps()
    timed(steps, cold=False, operations=steps.num_running * BLOCK_SIZE)
    steps.check()


def cached_prompts(num_tokens: int, count: int) -> tuple[BlockManager, list[list[int]]]:
    """A manager whose cache holds ``count`` prompts of ``num_tokens``, nobody running."""
    manager = BlockManager(count * (num_tokens // BLOCK_SIZE + 1) + 1, BLOCK_SIZE)
    prompts = [[number, *range(1, num_tokens)] for number in range(count)]
    for number, prompt in enumerate(prompts):
        manager.allocate(number, prompt, num_tokens)
        manager.commit(number, prompt, num_tokens)
        manager.free(number)
    return manager, [[*prompt, 0] for prompt in prompts]


@pytest.mark.parametrize("repeated", [False, True], ids=["another", "repeated"])
@pytest.mark.parametrize("num_tokens", [256, 4096])
def bench_match_prefix(timed, num_tokens, repeated):
    """Look-up of a cached prompt; one look-up after the other of the same, or of two in turn."""
    manager, prompts = cached_prompts(num_tokens, 2)

    def look_up() -> int:
        manager.match_prefix(prompts[not repeated])
        return manager.match_prefix(prompts[0])

    assert timed(look_up, cold=False, look_ups=2, num_tokens=num_tokens) == num_tokens


@pytest.mark.parametrize("num_tokens", [256, 4096])
def bench_prompt_life(timed, num_tokens):
    """allocate, commit and free of a prompt never seen before, in a pool full of old contents."""
    manager, _ = cached_prompts(num_tokens, 2)
    number = 2

    def life() -> None:
        nonlocal number
        number += 1
        prompt = [number, *range(1, num_tokens)]
        assert manager.allocate(number, prompt, num_tokens) == 0
        manager.commit(number, prompt, num_tokens)
        manager.free(number)

    timed(life, cold=False, num_tokens=num_tokens)
    manager.check_invariants()


def write_arguments(model: str, num_tokens: int, device: torch.device) -> tuple:
    """bf16 keys, values, caches of 1024 blocks, and slots at random."""
    shape = MODELS[model]
    heads = (shape.num_kv_heads, shape.head_dim)
    key, value = torch.randn(2, num_tokens, *heads, device=device).bfloat16()
    caches = torch.zeros(2, 1024, BLOCK_SIZE, *heads, device=device, dtype=torch.bfloat16)
    slots = torch.randperm(1024 * BLOCK_SIZE, device=device)[:num_tokens]
    return key, value, caches[0], caches[1], slots


@pytest.mark.parametrize("impl", [None, "torch"], ids=["default", "torch"])
@pytest.mark.parametrize("num_tokens", [1, 32, 2048])
@pytest.mark.parametrize("model", ["llama200m", "llama8b"])
def bench_write_kv(timed, device, model, num_tokens, impl):
    arguments = write_arguments(model, num_tokens, device)
    key, value, key_cache, value_cache, slots = arguments
    expected = torch.zeros_like(key_cache), torch.zeros_like(value_cache)
    reference.write_kv(key, value, *expected, slots)
    write_kv(*arguments, impl=impl)
    assert torch.equal(key_cache, expected[0])
    assert torch.equal(value_cache, expected[1])
    work = write_kv_work(num_tokens, *key.shape[1:], itemsize=2)
    timed(lambda: write_kv(*arguments, impl=impl), work=work, num_tokens=num_tokens)


@pytest.mark.parametrize("num_pairs", [1, 64])
@pytest.mark.parametrize("model", ["llama200m", "llama8b"])
def bench_copy_blocks(timed, device, model, num_pairs):
    shape = MODELS[model]
    cache = KVCache(
        2 * num_pairs + 1,
        num_layers=shape.num_layers,
        block_size=BLOCK_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=torch.bfloat16,
        device=device,
    )
    cache.storage.normal_()
    ids = (torch.randperm(2 * num_pairs) + 1).tolist()
    pairs = list(zip(ids[:num_pairs], ids[num_pairs:], strict=True))
    expected = cache.storage.flatten(0, 1).clone()
    reference.copy_blocks(expected, pairs)
    cache.copy_blocks(pairs)
    assert torch.equal(cache.storage.flatten(0, 1), expected)
    block_bytes = cache.storage[0, 0, 0].nbytes
    work = copy_blocks_work(num_pairs, 2 * shape.num_layers, block_bytes)
    timed(lambda: cache.copy_blocks(pairs), work=work, num_pairs=num_pairs)
