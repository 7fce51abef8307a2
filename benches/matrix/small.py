"""Rows L1 to L2, K1 to K2, S1, O1 and H1: losses, the cache, sampling, the optimiser, launches."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benches import machine
from benches.cases_ops import LossCase, SampleCase, normal
from benches.matrix.row import Measurement, Row, Setting, in_unit, operation, raced, timed
from blocks import kv, ops
from blocks.attention import merge_states
from blocks.ops import reference
from tests.numerics import assert_close


def cross_entropy(setting: Setting) -> Measurement:
    """Loss and gradient, the gradient written over the logits."""
    loss_of = operation("ops.cross_entropy")
    rows, vocab = setting.size(8192, 6), setting.size(128256, 300)
    logits = normal(rows, vocab, device=setting.device, grad=True)
    labels = torch.arange(rows, device=setting.device) * 7 % vocab
    case = LossCase(labels, logits=logits)
    few = logits.detach()[:64].float().requires_grad_()
    total = torch.nn.functional.cross_entropy(few, labels[:64], reduction="sum") / rows
    expected = torch.autograd.grad(total, few)[0]

    def check(found: tuple[Tensor, ...]) -> None:
        assert_close(found[1][:64], expected, slack=2.0, dtype=torch.bfloat16)

    ours = logits.detach().clone().requires_grad_()  # ends as its own gradient

    def call() -> tuple[Tensor, ...]:
        loss = loss_of(ours, labels, inplace=True, impl=setting.impl)
        return (loss, *torch.autograd.grad(loss, (ours,)))

    work = operation("ops.cross_entropy_work")(rows, vocab, logits.element_size())
    return raced(setting, "cross_entropy", case, call, check, work, "% copy")


def linear_cross_entropy(setting: Setting) -> Measurement:
    """Forward and backward, over the three bare products of the same sizes."""
    loss_of = operation("ops.linear_cross_entropy")
    rows, width, vocab = setting.size(8192, 6), setting.size(4096, 32), setting.size(128256, 300)
    hidden = normal(rows, width, device=setting.device, grad=True)
    weight = normal(vocab, width, device=setting.device).mul(width**-0.5).requires_grad_()
    labels = torch.arange(rows, device=setting.device) * 7 % vocab
    case = LossCase(labels, hidden=hidden, weight=weight)
    logits = hidden.detach()[:64].float() @ weight.detach().float().t()
    chances = logits.softmax(-1)
    chances[torch.arange(len(chances)), labels[:64]] -= 1
    expected = chances @ weight.detach().float() / rows

    def check(found: tuple[Tensor, ...]) -> None:
        assert_close(found[1][:64], expected, slack=2.0, dtype=torch.bfloat16)

    def call() -> tuple[Tensor, ...]:
        loss = loss_of(hidden, weight, labels, impl=setting.impl)
        return (loss, *torch.autograd.grad(loss, (hidden, weight)))

    grad = torch.empty(rows, vocab, dtype=hidden.dtype, device=setting.device)

    def bare() -> None:
        x, w = hidden.detach(), weight.detach()
        torch.mm(x, w.t(), out=grad)
        torch.mm(grad, w)
        torch.mm(grad.t(), x)

    work = operation("ops.linear_cross_entropy_work")(rows, width, vocab, hidden.element_size())
    found = raced(setting, "linear_cross_entropy", case, call, check, work, "ms")
    times = timed(setting, {"ours": call, "three products": bare})
    ratio = times["ours"].best.median_s / times["three products"].best.median_s
    merged = {**found.times, "three products": times["three products"]}
    return Measurement(ratio, merged, found.missing, found.info)


def fused_write(setting: Setting, tokens: int, unit: str) -> Measurement:
    """Norm, turn, quantise to fp8 and write, in one launch."""
    rope_write = operation("kv.rope_write_kv")
    tokens, size = setting.size(tokens, 5), setting.size(128, 16)
    heads, kv_heads = setting.size(32, 4), setting.size(8, 2)
    device = setting.device
    query = normal(tokens, heads, size, device=device)
    key, value = (normal(tokens, kv_heads, size, device=device) for _ in range(2))
    table = ops.rope_table(ops.rope_frequencies(size), tokens).to(device)
    shape = (-(-tokens // 16) + 1, 16, kv_heads, size)
    key_cache, value_cache = (
        torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device) for _ in range(2)
    )
    slots = torch.randperm(shape[0] * 16, device=device)[:tokens]
    positions = torch.arange(tokens, device=device)
    weight = normal(size, device=device)
    scale = torch.full((kv_heads,), 0.05, device=device)
    options: dict[str, Any] = {
        "query_norm": weight,
        "key_norm": weight,
        "k_scale": scale,
        "v_scale": scale,
        "impl": setting.impl,
    }
    given = (query, key, value, positions, table, key_cache, value_cache, slots)

    def call() -> Any:
        return rope_write(*given, **options)

    def unfused() -> Any:
        q, k = (ops.rms_norm(t, weight, impl=setting.impl) for t in (query, key))
        q, k = ops.apply_rope(q, k, positions, table, impl=setting.impl)
        scales: dict[str, Any] = {"k_scale": scale, "v_scale": scale, "impl": setting.impl}
        kv.write_kv(k, value, key_cache, value_cache, slots, **scales)
        return q

    assert_close(call(), unfused(), slack=2.0)
    work = operation("kv.rope_write_kv_work")(
        tokens, heads, kv_heads, size, size, query.element_size(), cache_itemsize=1
    )
    times = timed(setting, {"ours": call, "ours, in three": unfused})
    seconds = times["ours"].best.median_s
    rates = machine.rates(work, seconds, device, torch.bfloat16)
    return Measurement(in_unit(unit, seconds, work, device), times, {}, rates)


def copies(setting: Setting) -> Measurement:
    """10,000 blocks in 64 planes (32 layers), scattered."""
    planes, pairs = setting.size(64, 2), setting.size(10_000, 3)
    block = (16, 8, setting.size(128, 16))
    data = normal(planes, 2 * pairs + 1, *block, device=setting.device)
    order = torch.randperm(2 * pairs, generator=torch.Generator().manual_seed(0)).tolist()
    listed = list(zip(order[:pairs], order[pairs:], strict=True))
    call = functools.partial(kv.copy_blocks, data, listed, impl=setting.impl)
    call()
    assert torch.equal(data[:, order[pairs]], data[:, order[0]]), "the first block is not there"
    sources, targets = (
        torch.tensor(ids, device=setting.device) for ids in (order[:pairs], order[pairs:])
    )

    def by_index() -> None:
        data.index_copy_(1, targets, data.index_select(1, sources))

    size = data[0, 0].numel() * data.element_size()
    work = kv.copy_blocks_work(pairs, planes, size)
    times = timed(setting, {"ours": call, "index_copy": by_index})
    seconds = times["ours"].best.median_s
    rates = machine.rates(work, seconds, setting.device, torch.bfloat16)
    return Measurement(in_unit("% copy", seconds, work, setting.device), times, {}, rates)


def swaps(setting: Setting) -> Measurement:
    """Blocks to pinned host memory, over one contiguous copy of the same bytes."""
    planes, pairs = setting.size(64, 2), setting.size(1_000, 3)
    block = (16, 8, setting.size(128, 16))
    data = normal(planes, pairs + 1, *block, device=setting.device)
    pinned = setting.device.type == "cuda"
    host = torch.empty(data.shape, dtype=data.dtype, pin_memory=pinned)
    listed = [(i, pairs - i) for i in range(pairs)]
    call = functools.partial(kv.swap_blocks, data, host, listed)
    call()
    machine.wait(setting.device)
    assert torch.equal(host[:, pairs], data[:, 0].cpu()), "the first block is not there"
    flat = data[:, :pairs].reshape(-1)
    target = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=pinned)

    def contiguous() -> None:
        target.copy_(flat, non_blocking=True)

    calls = {"ours": call, "one copy": contiguous}
    times = machine.interleaved(
        calls, setting.device, budget_s=0.0 if setting.tiny else 1.0, min_rounds=1, graph=False
    )
    ratio = times["one copy"].best.median_s / times["ours"].best.median_s
    return Measurement(100 * ratio, times)


def sampling(setting: Setting, num_rows: int) -> Measurement:
    rows, vocab = setting.size(num_rows, 3), setting.size(128256, 500)
    logits = normal(rows, vocab, device=setting.device) * 3
    case = SampleCase(logits)
    options = {"top_k": case.top_k, "top_p": case.top_p, "min_p": case.min_p}
    seeds = torch.arange(rows, device=setting.device)

    def call() -> Tensor:
        return ops.sample(logits, **options, seeds=seeds, impl=setting.impl)

    wanted = reference.kept_tokens(
        logits.float(),
        *(
            torch.full((rows,), value, device=setting.device)
            for value in (1.0, case.top_k, case.top_p, case.min_p * 0.99)
        ),
    )

    def check(drawn: Tensor) -> None:
        kept = wanted.gather(1, drawn.long()[:, None])
        assert kept.float().mean() > 0.99, "draws a token the rules leave out"

    work = ops.sample_work(rows, vocab, logits.element_size())
    return raced(setting, "sample", case, call, check, work, "us")


def adamw(setting: Setting) -> Measurement:
    """One step over 1e9 parameters in tensors of a decoder's shapes, float32 states."""
    step = operation("ops.adamw_step")
    sizes = [(4096, 4096)] * 40 + [(14336, 4096)] * 5 + [(4096,)] * 40
    if setting.tiny:
        sizes = [(8, 8), (3, 5), (7,)]
    made = functools.partial(torch.randn, device=setting.device)
    parameters = [made(size) for size in sizes]
    gradients = [made(size) for size in sizes]
    states = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    theirs = [torch.nn.Parameter(p.clone()) for p in parameters]
    for parameter, gradient in zip(theirs, gradients, strict=True):
        parameter.grad = gradient
    case = types.SimpleNamespace(parameters=theirs)
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        step(parameters, gradients, *states, step=count, lr=1e-3, impl=setting.impl)

    def check(_: object) -> None:
        """Both start from the same numbers, and the first step moves each by the rate."""
        worst = max(
            (a - b.detach()).abs().max().item() for a, b in zip(parameters, theirs, strict=True)
        )
        assert worst < 5e-3, f"parameters differ by {worst}"

    work = operation("ops.adamw_work")(sum(p.numel() for p in parameters))
    return raced(setting, "adamw", case, call, check, work, "% copy", dtype=torch.float32)


def launch(setting: Setting) -> Measurement:
    """Host time of one eager call that launches one kernel, without waiting."""
    outputs = torch.randn(2, 1, 4, 64, device=setting.device)
    lses = torch.randn(2, 1, 4, device=setting.device)
    call = functools.partial(merge_states, outputs, lses, impl=setting.impl)
    calls = 1 if setting.tiny else 200
    seconds = machine.launch_seconds(call, setting.device, calls=calls)
    return Measurement(seconds * 1e6)


def rows() -> Iterator[Row]:
    yield Row(
        "L1",
        "cross entropy and gradient bf16, 8192x128256, of one read and one write",
        "% copy",
        75,
        90,
        cross_entropy,
        {"liger": 1.4, "compile": 1.2},
    )
    yield Row(
        "L2",
        "linear cross entropy bf16 8192x4096x128256, both passes, over three bare products",
        "x time",
        1.25,
        1.12,
        linear_cross_entropy,
        {"liger": 1.25, "compile": 1.0},
    )
    write = "qk-norm, rope, fp8, write to pages"
    yield Row(
        "K1-8192",
        f"{write}, 8192 tokens",
        "% copy",
        75,
        88,
        functools.partial(fused_write, tokens=8192, unit="% copy"),
        {"ours, in three": 1.6},
    )
    yield Row(
        "K1-128",
        f"{write}, 128 tokens",
        "us",
        6,
        4,
        functools.partial(fused_write, tokens=128, unit="us"),
        {"ours, in three": 1.6},
    )
    yield Row(
        "K2-copy",
        "10,000 blocks copied in 32 layers",
        "% copy",
        88,
        95,
        copies,
        {"index_copy": 1.0},
    )
    yield Row(
        "K2-swap", "1,000 blocks to pinned memory, of one plain copy", "% of link", 90, 97, swaps
    )
    for count, one, two in ((1, 40, 20), (64, 90, 60), (512, 450, 250)):
        yield Row(
            f"S1-{count}",
            f"top-k, top-p, min-p draw from {count} x 128256 bf16 logits",
            "us",
            one,
            two,
            functools.partial(sampling, num_rows=count),
            {"torch sort": 5.0, "flashinfer": 0.8},
        )
    yield Row(
        "O1", "AdamW over 1e9 fp32 parameters", "% copy", 90, 96, adamw, {"torch fused": 1.05}
    )
    yield Row("H1", "host time of an eager launch", "us", 8, 4, launch)
