"""Figures claimed by blocks.kv: the paper's capacity arithmetic, waste, and cost per operation."""

import functools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benches import machine
from benches.bench_kv import BLOCK_SIZE, DecodeSteps, cached_prompts, write_arguments
from benches.bench_kv_write import WriteCase
from benches.figures import _kernels
from benches.figures.row import Measured, Row
from blocks.kv import bytes_per_token, write_kv
from blocks.kv.waste import (
    WasteShares,
    reserve_max,
    reserve_oracle,
    reserve_pow2,
    sharegpt_like,
    simulate_contiguous,
    simulate_paged,
)

COMMAND = "make figures AREA=kv"
BENCH = "python -m pytest benches/bench_kv.py --benchmark-enable -k "
NUM_REQUESTS = 2000
PAPER_STORED = {"max": 20.4, "pow2": 26.8, "oracle": 38.2, "paged": 96.3}
"""Percent of the cache that holds tokens (Kwon et al., 2023, figure 2)."""


def rows() -> Iterator[Row]:
    yield Row("OPT-13B, one token's keys and values", "800 KiB", COMMAND, token_bytes)
    yield Row("OPT-13B, token slots in 12 GiB", "15.7K", COMMAND, capacity)
    yield Row("of these, reservations of 2048 at once", "7", COMMAND, reservations)
    names = {
        "max": "contiguous, longest reserved",
        "pow2": "contiguous, output rounded up to 2^n",
        "oracle": "contiguous, length known",
    }
    for policy, name in names.items():
        target = f"paper {PAPER_STORED[policy]} %"
        yield Row(
            f"slots that hold tokens, {name}", target, COMMAND, functools.partial(stored, policy)
        )
    yield Row("wasted slots, paged", "< 4 % (paper 3.7 %)", COMMAND, paged_waste)
    yield Row("requests at once, paged over length known", "paper 2.2x", COMMAND, concurrency)
    yield Row(
        "append + commit, per running request and step, 256 running",
        "<= 2 us",
        BENCH + "append",
        append_and_commit,
    )
    yield Row("look-up of 4096 cached tokens", "", BENCH + "match", look_up)
    yield Row("the same look-up again", "", BENCH + "match", look_up_again)
    yield Row("write_kv, 32 tokens, native over torch", ">= 2x", BENCH + "write", write_ratio)
    write = BENCH.replace("bench_kv", "bench_kv_write")
    yield Row(
        "write_kv into int8 with a scale a token, 32 tokens, native over torch",
        ">= 2x",
        write + "quantised",
        functools.partial(quantised_ratio, "int8"),
    )
    yield Row(
        "the same into fp8",
        ">= 2x",
        write + "quantised",
        functools.partial(quantised_ratio, "fp8"),
    )
    for num_tokens in (1, 32):
        yield Row(
            f"rope_write_kv with norms, {num_tokens} token(s), over norm, rope and write in turn",
            ">= 1.1x",
            write + "rope",
            functools.partial(fused_ratio, num_tokens, "bf16"),
        )
    yield Row(
        "the same into int8, 32 tokens",
        ">= 1.1x",
        write + "rope",
        functools.partial(fused_ratio, 32, "int8"),
    )
    yield Row(
        "tokens in the same memory, int8 with a scale a token over bf16, heads of 128",
        ">= 1.9x",
        COMMAND,
        more_tokens,
    )
    yield Row(
        "random engine steps, every slot's contents checked: wrong reads",
        "0",
        COMMAND,
        wrong_reads,
    )
    yield Row(
        "1,000,000 prefix operations, digests of 0 and 1 bytes: wrong blocks",
        "0",
        COMMAND + " with --nightly",
        functools.partial(wrong_blocks, 1_000_000),
        nightly=True,
    )
    yield Row(
        "20,000 prefix operations, digests of 0 and 1 bytes: wrong blocks",
        "0",
        COMMAND,
        functools.partial(wrong_blocks, 20_000),
    )
    yield from _kernels.rows("kv", ("K",))


def token_bytes() -> Measured:
    found = bytes_per_token(40, 40, 128, torch.float16)
    return Measured(f"{found / 1024:g} KiB", found == 800 * 1024)


def num_slots() -> int:
    return 12 * 2**30 // bytes_per_token(40, 40, 128, torch.float16)


def capacity() -> Measured:
    return Measured(f"{num_slots():,}", round(num_slots() / 1000, 1) == 15.7)


def reservations() -> Measured:
    found = simulated("max").num_running
    return Measured(f"{found:g}", found == 7)


@functools.cache
def simulated(policy: str) -> WasteShares:
    requests = sharegpt_like(NUM_REQUESTS)
    if policy == "paged":
        return simulate_paged(requests, num_slots())
    reserve = {"max": reserve_max(), "pow2": reserve_pow2, "oracle": reserve_oracle}[policy]
    return simulate_contiguous(requests, num_slots(), reserve)


def stored(policy: str) -> Measured:
    """Within five points of the paper: its length sample is not published."""
    shares = simulated(policy)
    text = (
        f"{100 * shares.stored:.1f} % (reserved {100 * shares.reserved:.1f}, internal "
        f"{100 * shares.internal:.1f}, external {100 * shares.external:.1f})"
    )
    return Measured(text, abs(100 * shares.stored - PAPER_STORED[policy]) < 5)


def paged_waste() -> Measured:
    shares = simulated("paged")
    waste = 1 - shares.stored
    text = (
        f"{100 * waste:.1f} % (last blocks {100 * (shares.reserved + shares.internal):.1f}, free "
        f"while requests wait {100 * shares.external:.1f})"
    )
    return Measured(text, waste < 0.04)


def concurrency() -> Measured:
    paged, oracle = simulated("paged").num_running, simulated("oracle").num_running
    text = f"{paged / oracle:.1f}x ({paged:.1f} over {oracle:.1f})"
    return Measured(text, paged / oracle > 2)


def micros(call: Callable[[], object], per: int, rounds: int = 30) -> tuple[Measured, float]:
    """Median and spread (first to last decile) of one of ``per`` operations in ``call``."""
    call()
    times = sorted(machine.seconds(call, torch.device("cpu"), cold=False) for _ in range(rounds))
    low, high = times[rounds // 10], times[-1 - rounds // 10]
    median = statistics.median(times) / per * 1e6
    return Measured(f"{median:.2f} us ({low / per * 1e6:.2f}-{high / per * 1e6:.2f})", None), median


def append_and_commit() -> Measured:
    steps = DecodeSteps(max_calls=40)
    found, median = micros(steps, steps.num_running * BLOCK_SIZE)
    steps.check()
    return Measured(found.text, median <= 2)


def look_up() -> Measured:
    manager, prompts = cached_prompts(4096, 2)
    both = [manager.match_prefix, manager.match_prefix]
    return micros(lambda: [match(p) for match, p in zip(both, prompts, strict=True)], 2)[0]


def look_up_again() -> Measured:
    manager, prompts = cached_prompts(4096, 1)
    return micros(lambda: manager.match_prefix(prompts[0]), 1)[0]


def write_ratio() -> Measured:
    """Warm: the engine calls it for every layer of every step."""
    arguments = write_arguments("llama200m", 32, torch.device("cpu"))
    times = machine.race(
        {
            "native": lambda: write_kv(*arguments, impl="native"),
            "torch": lambda: write_kv(*arguments, impl="torch"),
        },
        torch.device("cpu"),
        rounds=300,
        cold=False,
    )
    native, plain = times["native"] * 1e6, times["torch"] * 1e6
    text = f"{plain / native:.1f}x ({native:.1f} against {plain:.1f} us)"
    return Measured(text, plain / native >= 2)


def quantised_ratio(cache: str) -> Measured:
    """Warm, as `write_ratio`."""
    case = WriteCase("llama200m", 32, torch.device("cpu"), cache=cache, normed=False)
    times = machine.race(
        {
            "native": lambda: case.write(case.key, "native"),
            "torch": lambda: case.write(case.key, "torch"),
        },
        torch.device("cpu"),
        rounds=200,
        cold=False,
    )
    native, plain = times["native"] * 1e6, times["torch"] * 1e6
    text = f"{plain / native:.1f}x ({native:.1f} against {plain:.1f} us)"
    return Measured(text, plain / native >= 2)


def fused_ratio(num_tokens: int, cache: str) -> Measured:
    """Warm; heads of the 200M Llama, with Qwen3's norms."""
    case = WriteCase("llama200m", num_tokens, torch.device("cpu"), cache=cache, normed=True)
    calls = {"fused": case.fused, "unfused": case.unfused}
    with torch.inference_mode():
        times = machine.race(calls, torch.device("cpu"), rounds=300, cold=False)
    fused, unfused = times["fused"] * 1e6, times["unfused"] * 1e6
    text = f"{unfused / fused:.2f}x ({fused:.1f} against {unfused:.1f} us)"
    return Measured(text, unfused / fused >= 1.1)


def more_tokens() -> Measured:
    sizes = (32, 8, 128)
    plain = bytes_per_token(*sizes, torch.bfloat16)
    ratio = plain / bytes_per_token(*sizes, torch.int8, "token")
    return Measured(f"{ratio:.2f}x", ratio >= 1.9)


def wrong_reads(num_steps: int = 100_000) -> Measured:
    """The manager's state machine of the tests, driven by a seeded generator."""
    from tests.kv.machines import ManagerMachine

    started, steps, generator = time.perf_counter(), 0, random.Random(0)
    while steps < num_steps:
        machine_ = ManagerMachine()
        sizes = generator.randint(4, 14), generator.randint(1, 4)
        machine_.start(*sizes, generator.choice((0, 1, 32)))
        for _ in range(10):
            machine_.churn(generator)  # asserts the contents of every live slot
            steps += 10
    took = time.perf_counter() - started
    return Measured(f"0 in {steps:,} operations ({took:.0f} s)", True)


def wrong_blocks(num_operations: int) -> Measured:
    """The prefix cache's state machine of the tests, likewise; three namespaces."""
    from tests.kv.machines import PrefixMachine

    operations, generator = 0, random.Random(0)
    while operations < num_operations:
        machine_ = PrefixMachine()
        machine_.start(generator.randint(1, 3), generator.choice((0, 1)))
        for _ in range(10):
            machine_.churn(generator)  # asserts every match against a dictionary of all tokens
            operations += 15
        machine_.agree()
    return Measured(f"0 in {operations:,}", True)


if __name__ == "__main__":
    sys.exit("run python -m benches.figures --area kv")
