"""Rows D1 to D9: one new token a sequence, over pages."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from einops import reduce

from benches.cases import PagedCase
from benches.cases_ops import MlaCase
from benches.matrix.row import Measurement, Row, Setting, operation, raced, timed
from benches.peers import ready
from blocks import attention
from blocks.attention import paged_decode, reference
from tests.numerics import assert_close

SLACK = 2.0
"""On the tolerance: sums over thousands of keys, in another order than the reference's."""


def ragged_lens(count: int, longest: int) -> list[int]:
    """Many short contexts and a few long ones: ``longest`` over 1, 2, 3, ..."""
    return [max(1, longest // (1 + n)) for n in range(count)]


def paged(setting: Setting, lens: list[int], heads: int, kv_heads: int, **more: Any) -> PagedCase:
    """The case of a row; when tiny, three short sequences and two groups."""
    if setting.tiny:
        lens = [max(1, min(n, 40) - 3 * i) for i, n in enumerate(lens[:3])]
        heads, kv_heads = 2 * (heads // kv_heads), 2
    return PagedCase.random(
        lens,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=setting.size(128, 32),
        dtype=torch.float32 if setting.tiny else torch.bfloat16,
        device=setting.device,
        **more,
    )


def ours(setting: Setting, case: PagedCase, **options: Any) -> Any:
    """One decode of a case, as a call."""
    given = (case.query, case.key_cache, case.value_cache, case.block_table, case.seq_lens)
    return lambda: paged_decode(*given, impl=setting.impl, **options)


def decode(
    setting: Setting, lens: list[int], heads: int, kv_heads: int, unit: str = "% copy"
) -> Measurement:
    case = paged(setting, lens, heads, kv_heads)
    check = functools.partial(case.check, slack=SLACK)
    return raced(setting, "paged_decode", case, ours(setting, case), check, case.work, unit)


def quantised(setting: Setting, dtype: torch.dtype, per_token: bool) -> Measurement:
    """Time over that of the same call on bf16 keys and values, in turn."""
    plain = paged(setting, [4096] * 128, 32, 8)
    largest = 448.0 if dtype.is_floating_point else 127.0
    kept = "block offset head" if per_token else "head"
    stored, scales = [], []
    for cache in (plain.key_cache, plain.value_cache):
        scale = reduce(cache.abs(), f"block offset head dim -> {kept}", "max").float() / largest
        scaled = cache / scale[..., None]
        stored.append((scaled if dtype.is_floating_point else scaled.round()).to(dtype))
        scales.append(scale)
    case = PagedCase(
        plain.query, stored[0], stored[1], plain.block_table, plain.query_lens, plain.lens
    )
    call = ours(setting, case, k_scale=scales[0], v_scale=scales[1])
    worst = (call() - ours(setting, plain)()).abs().max()
    assert worst < 0.2, f"differs by {worst:.2f} from the same call on unquantised keys and values"
    times = timed(setting, {"ours": call, "ours bf16": ours(setting, plain)})
    ratio = times["ours"].best.median_s / times["ours bf16"].best.median_s
    return Measurement(ratio, times)


def tree(setting: Setting, num_queries: int) -> Measurement:
    """A chain of drafted tokens verified at once, over the time of one query a sequence."""
    tree_decode = operation("attention.tree_decode")
    lens = [4096] * 128
    one = ours(setting, paged(setting, lens, 32, 8))
    case = paged(setting, lens, 32, 8, query_lens=[num_queries] * (3 if setting.tiny else 128))
    parents = torch.arange(num_queries, device=setting.device).int() - 1  # each follows the last
    mask = operation("attention.tree_mask_from_parents")(
        parents.repeat(len(case.lens)), case.cu_seqlens_q
    )
    given = (case.query, case.key_cache, case.value_cache, case.block_table, case.seq_lens)

    def verify() -> Any:
        return tree_decode(*given, case.cu_seqlens_q, mask, impl=setting.impl)

    check = functools.partial(case.check, slack=SLACK)
    check(verify())
    calls, missing = ready("paged_extend", case, setting.device, check)  # a chain is a chunk
    times = timed(setting, {"ours": verify, "ours, one query": one, **calls})
    ratio = times["ours"].best.median_s / times["ours, one query"].best.median_s
    return Measurement(ratio, times, missing)


def cascade(setting: Setting) -> Measurement:
    """64 sequences over one prefix of 16K and 256 tokens of their own, over the plain decode."""
    cascade_decode = operation("attention.cascade_decode")
    shared, batch = setting.size(16384, 32), setting.size(64, 3)
    case = paged(setting, [256] * batch, 32, 8)
    pages = shared // case.block_size
    first = case.key_cache.shape[0]
    shape = (pages, *case.key_cache.shape[1:])
    more = [torch.randn(shape, device=setting.device).to(case.query.dtype) for _ in range(2)]
    prefix = torch.arange(first, first + pages, dtype=torch.int32, device=setting.device)
    case = PagedCase(
        case.query,
        torch.cat((case.key_cache, more[0])),
        torch.cat((case.value_cache, more[1])),
        torch.cat((prefix.expand(batch, -1), case.block_table), 1).contiguous(),
        case.query_lens,
        [shared + n for n in case.lens],
    )
    group = operation("attention.SharedPrefix")(
        torch.tensor([0, batch], dtype=torch.int32, device=setting.device),
        torch.tensor([shared], dtype=torch.int32, device=setting.device),
    )
    given = (case.query, case.key_cache, case.value_cache, case.block_table, case.seq_lens)

    def split() -> Any:
        return cascade_decode(*given, [group], impl=setting.impl)

    case.check(split(), slack=SLACK)
    times = timed(setting, {"ours": split, "ours, not shared": ours(setting, case)})
    ratio = times["ours, not shared"].best.median_s / times["ours"].best.median_s
    return Measurement(ratio, times)


def mla(setting: Setting) -> Measurement:
    heads, latent, rotary = setting.size(128, 4), setting.size(512, 64), setting.size(64, 16)
    lens = [setting.size(4096, 40)] * setting.size(128, 2)
    pages = -(-lens[0] // 64)
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    made = {"device": setting.device, "dtype": dtype}
    cache = torch.randn(len(lens) * pages + 1, 64, latent + rotary, **made)
    table = 1 + torch.randperm(len(lens) * pages, device=setting.device).int().view(len(lens), -1)
    case = MlaCase(
        query=torch.randn(len(lens), heads, latent + rotary, **made),
        latent_cache=cache,
        block_table=table,
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=setting.device),
        lens=lens,
        latent_dim=latent,
        scale=(128 + rotary) ** -0.5,
    )
    given = (case.query, cache, table, case.seq_lens)
    options = {"scale": case.scale, "latent_dim": latent}

    def check(output: torch.Tensor) -> None:
        few = [t[:2] for t in (case.query, table, case.seq_lens)]
        expected = reference.mla_decode(few[0], cache, few[1], few[2], **options)
        assert_close(output[:2], expected, slack=SLACK)

    work = attention.mla_decode_work(
        lens,
        num_heads=heads,
        latent_dim=latent,
        rope_dim=rotary,
        itemsize=cache.element_size(),
    )
    call = functools.partial(attention.mla_decode, *given, **options, impl=setting.impl)
    return raced(setting, "mla_decode", case, call, check, work, "TFLOP/s", dtype=dtype)


def rows() -> Iterator[Row]:
    every = {"flashinfer": 1.0, "fa3": 1.1, "vllm fa3": 1.1, "vllm triton": 1.3, "flex": 1.5}

    def row(
        name: str,
        what: str,
        lens: list[int],
        heads: tuple[int, int],
        one: float,
        two: float,
        *,
        unit: str = "% copy",
        peers: dict[str, float] | None = None,
    ) -> Row:
        measure = functools.partial(decode, lens=lens, heads=heads[0], kv_heads=heads[1], unit=unit)
        return Row(name, f"paged decode bf16, {what}", unit, one, two, measure, peers or {})

    yield row("D1", "B128 32/8 heads x 128, ctx 4096", [4096] * 128, (32, 8), 90, 97, peers=every)
    default = {"flashinfer": 1.4}
    yield row("D2-g4", "B32 32/8, ctx 4096", [4096] * 32, (32, 8), 80, 90, peers=default)
    yield row("D2-g8", "B16 64/8, ctx 4096", [4096] * 16, (64, 8), 80, 90, peers=default)
    yield row("D3-g4", "B8 32/8, ctx 32768", [32768] * 8, (32, 8), 90, 97, peers=every)
    yield row("D3-g8", "B4 64/8, ctx 32768", [32768] * 4, (64, 8), 90, 97, peers=every)
    alone = {"flashinfer": 1.15}
    for name, ctx, one, two in (
        ("1k", 1024, 10, 7.5),
        ("32k", 32768, 33, 29),
        ("128k", 131072, 85, 77),
    ):
        peers = {**alone, "fa3": 1.5, "vllm fa3": 1.5} if name == "1k" else alone
        yield row(
            f"D4-{name}", f"B1 32/4, ctx {ctx}", [ctx], (32, 4), one, two, unit="us", peers=peers
        )
    skewed = ragged_lens(64, 32768)
    yield row(
        "D5",
        "64 skewed lengths, 512 to 32K, 32/8",
        skewed,
        (32, 8),
        80,
        90,
        peers={"flashinfer with plan": 1.05},
    )
    for name, dtype, per_token in (("fp8", torch.float8_e4m3fn, False), ("int8", torch.int8, True)):
        scales = "token and head" if per_token else "head"
        measure = functools.partial(quantised, dtype=dtype, per_token=per_token)
        yield Row(
            f"D6-{name}",
            f"D1 with {name} keys and values, a scale per {scales}, over bf16",
            "x time",
            0.60,
            0.54,
            measure,
        )
    for n in (4, 8):
        yield Row(
            f"D7-q{n}",
            f"tree verify of {n} tokens at D1, over one token",
            "x time",
            1.15,
            1.05,
            functools.partial(tree, num_queries=n),
            {"vllm triton": 2.0},
        )
    yield Row(
        "D8",
        "64 sequences sharing 16K, 256 own, over the plain decode",
        "x speed",
        5.0,
        29.0,
        cascade,
    )
    yield Row(
        "D9",
        "MLA decode B128, 128 heads, 512 + 64, ctx 4096",
        "TFLOP/s",
        363,
        528,
        mla,
        {"flashinfer": 1.0},
    )
