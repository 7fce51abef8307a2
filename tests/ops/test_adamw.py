import copy
import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from blocks.ops import AdamW, _adamw_update, adamw_step, adamw_work
from blocks.ops._adamw_update import TILE
from tests.aot import compile_all
from tests.numerics import assert_close

SHAPES = [(3, 5), (0,), (TILE + 1,), (), (2, 3, 4), (TILE,), (1, TILE - 1)]
IMPLS: list[Any] = ["torch", "triton"]


def parameters(shapes=SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def give_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


def assert_same(ours: list[nn.Parameter], theirs: list[nn.Parameter], slack: float = 1.0) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(a, b, what=f"parameter {i}", slack=slack)


def torchs(params: list[nn.Parameter], **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, fused=True, **options)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_many_steps_over_mixed_shapes_equal_torch(impl, tensor_lr) -> None:
    options = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours, theirs = parameters(), parameters()
    run(
        AdamW(ours, torch.tensor(0.01) if tensor_lr else 0.01, **options, impl=impl), ours, range(8)
    )
    run(torchs(theirs, lr=0.01, **options), theirs, range(8))
    assert_same(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
def test_any_layout_of_parameter_and_gradient(impl) -> None:
    """Columns first, with gaps, and gradients laid out otherwise than their parameters."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(6, 8, generator=generator) for _ in range(4)]
    theirs = [nn.Parameter(t.clone()) for t in (made[0].t(), made[1][:, ::2], made[2], made[3])]
    ours = [nn.Parameter(t) for t in (made[0].t(), made[1][:, ::2], made[2], made[3])]
    optimizers = AdamW(ours, 0.01, max_norm=1.0, impl=impl), torch.optim.AdamW(theirs, 0.01)
    for step in range(3):
        give_gradients(ours, step)
        for a, b in zip(ours, theirs, strict=True):
            assert a.grad is not None
            b.grad = a.grad.clone()
        ours[3].grad = ours[3].grad.t().contiguous().t()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(ours, theirs)
    assert not torch.equal(made[1][:, ::2], torch.zeros(6, 4))


def test_on_a_cpu_it_is_torchs_fused_adamw_bit_for_bit() -> None:
    ours, theirs = parameters(), parameters()
    run(AdamW(ours, 0.01), ours, range(20))
    run(torchs(theirs, lr=0.01), theirs, range(20))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@given(
    impl=st.sampled_from(["torch", "triton"]),
    sizes=st.lists(st.sampled_from([0, 1, 7, TILE - 1, TILE, TILE + 1]), min_size=0, max_size=4),
    step=st.sampled_from([1, 2, 1000]),
    max_norm=st.sampled_from([None, 0.5, 1e6]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.0), (0.5, 0.9999)]),
    state=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_one_step_equals_the_reference(impl, sizes, step, max_norm, betas, state, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.randn(n, generator=generator).to(dtype) for n in sizes]

    lists = [draw(), draw(), draw(state), [t.abs() for t in draw(state)]]
    options = {"step": step, "lr": 0.01, "betas": betas, "max_norm": max_norm}
    expected, actual = copy.deepcopy(lists), copy.deepcopy(lists)
    one = adamw_step(*expected, **options, impl="reference")
    other = adamw_step(*actual, **options, impl=impl)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert_close(other, one)
    for ours, theirs in zip(actual, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(actual[1], lists[1], strict=True)), "gradients"


@pytest.mark.parametrize("impl", IMPLS)
def test_clipping_inside_the_step_is_clip_grad_norm_before_it(impl) -> None:
    ours, theirs = parameters(), parameters()
    clipped = AdamW(ours, 0.01, max_norm=0.3, impl=impl)
    plain = torchs(theirs, lr=0.01)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.3)
        clipped.step()
        plain.step()
        assert clipped.grad_norm is not None
        assert_close(clipped.grad_norm, norm)
    assert_same(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(impl, bad) -> None:
    params = parameters()
    optimizer = AdamW(params, 0.01, max_norm=1.0, impl=impl)
    run(optimizer, params, range(2))
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    give_gradients(params, 2)
    assert params[2].grad is not None
    params[2].grad[TILE] = bad
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before[0], strict=True))
    for old, new in zip(before[1].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    run(optimizer, params, range(3, 4))
    assert not torch.equal(params[2], before[0][2])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_loss_scaler_finds_what_it_needs(impl) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, 0.01, impl=impl)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)  # type: ignore
    give_gradients(ours, 0, scale=8.0)
    optimizer.step()
    run(torchs(theirs, lr=0.01), theirs, range(1))
    assert_same(ours, theirs)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[assignment]
    optimizer.step()
    assert_same(ours, theirs)
    assert optimizer.state[ours[0]]["step"] == 1


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("torch_first", [False, True])
def test_state_dicts_interchange_with_torch(impl, torch_first) -> None:
    """Half the run under one optimizer, half under the other: as the whole under torch's."""
    whole, halves = parameters(), parameters()
    run(torchs(whole, lr=0.01), whole, range(6))
    makers = [lambda p: torchs(p, lr=0.5), lambda p: AdamW(p, 0.5, impl=impl)]
    first, second = makers if torch_first else makers[::-1]
    one = first(halves)
    for group in one.param_groups:
        group["lr"] = 0.01
    run(one, halves, range(3))
    other = second(halves)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    run(other, halves, range(3, 6))
    assert_same(halves, whole)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert one.state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_a_parameter_without_a_gradient_waits_and_keeps_its_own_step() -> None:
    for impl in IMPLS:
        ours, theirs = parameters(), parameters()
        pair = (AdamW(ours, 0.01, impl=impl), ours), (torchs(theirs, lr=0.01), theirs)
        for optimizer, params in pair:
            for step in range(4):
                give_gradients(params, step)
                if step % 2:
                    params[0].grad = None
                optimizer.step()
        assert_same(ours, theirs)
        assert pair[0][0].state[ours[0]]["step"] == 2


def test_moments_of_another_dtype_survive_a_checkpoint() -> None:
    for dtype, state_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        params = parameters(dtype=dtype)
        optimizer = AdamW(params, 0.01, state_dtype=state_dtype)
        run(optimizer, params, range(3))
        saved = copy.deepcopy(optimizer.state_dict())
        again = AdamW(params, 0.01, state_dtype=state_dtype)
        again.load_state_dict(saved)
        for p in params:
            for name in ("exp_avg", "exp_avg_sq"):
                assert again.state[p][name].dtype == state_dtype
                assert torch.equal(again.state[p][name], optimizer.state[p][name])


def test_bf16_moments_stay_near_fp32_ones() -> None:
    for impl in IMPLS:
        narrow, wide = parameters(), parameters()
        run(AdamW(narrow, 0.01, state_dtype=torch.bfloat16, impl=impl), narrow, range(5))
        run(AdamW(wide, 0.01), wide, range(5))
        start = parameters()
        for a, b, s in zip(narrow, wide, start, strict=True):
            if a.numel():
                assert (a - b).norm() < 0.05 * (b - s).norm()


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_bits_every_run(impl) -> None:
    found = []
    for _ in range(2):
        params = parameters()
        run(AdamW(params, 0.01, max_norm=0.5, impl=impl), params, range(3))
        found.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_beside_a_tensor_is_read_or_written(impl) -> None:
    """Each tensor is a window into NaN."""
    lists = []
    rooms = [torch.full((TILE + 40,), torch.nan) for _ in range(4)]
    for room in rooms:
        room[13 : TILE + 20] = 1.0  # not aligned either
        lists.append([room[13 : TILE + 20]])
    adamw_step(*lists, step=1, lr=0.1, impl=impl)
    for room, (window,) in zip(rooms, lists, strict=True):
        assert window.isfinite().all()
        assert room[:13].isnan().all()
        assert room[TILE + 20 :].isnan().all()


def test_closures_and_schedulers_work() -> None:
    params = parameters()
    optimizer = AdamW(params, 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure() -> float:
        give_gradients(params, 0)
        return 3.0

    assert optimizer.step(closure) == 3.0
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": []}, "grads: expected 1 tensors, got 0"),
        ({"grads": [torch.ones(3)]}, r"grads\[0\] shape: expected \[2\], got \[3\]"),
        ({"step": 0}, "step: expected a whole number from 1"),
        ({"step": [torch.tensor(1.0)] * 2}, "step: expected 1 scalars, got 2"),
        ({"lr": torch.ones(2)}, r"lr: expected one number, got shape \[2\]"),
        ({"grad_scale": torch.ones(2)}, "grad_scale: expected one number"),
        ({"found_inf": torch.ones(2)}, "found_inf: expected one number"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        ({"betas": (0.9,)}, r"betas: expected two numbers in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas: expected numbers in \[0, 1\)"),
        ({"eps": -1.0}, "eps: expected"),
        ({"weight_decay": -1.0}, "weight_decay: expected"),
        ({"max_norm": 0.0}, "max_norm: expected a positive number"),
        ({"params": [torch.ones(1).expand(2)]}, r"params\[0\]: expected memory of its own"),
        ({"impl": "native"}, "impl: expected one of"),
    ],
)
def test_misuse_is_refused_before_anything_changes(change: dict, message: str) -> None:
    given = {name: [torch.ones(2)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(adamw_step)(**{**given, "step": 1, "lr": 0.1, **change})
    assert (given["params"][0] == 1).all()


def test_a_sparse_gradient_is_refused_before_anything_changes() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.eye(3)[0].to_sparse()
    with pytest.raises(ValueError, match="gradients: expected dense ones"):
        AdamW([param]).step()
    assert (param == 1).all()


def test_settings_that_no_step_could_take_are_refused() -> None:
    param = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="state_dtype: expected a floating point dtype"):
        AdamW([param], state_dtype=torch.int8)
    with pytest.raises(ValueError, match=r"impl: expected one of \['torch', 'triton'\]"):
        AdamW([param], impl="native")  # type: ignore[arg-type]


def test_settings_of_torch_that_are_not_offered_are_refused() -> None:
    params = parameters()
    saved = torch.optim.AdamW(params, amsgrad=True).state_dict()
    optimizer = AdamW(params)
    optimizer.load_state_dict(saved)
    give_gradients(params, 0)
    with pytest.raises(ValueError, match="amsgrad: expected False, got True"):
        optimizer.step()


@pytest.mark.parametrize("capturing", [False, True])
def test_a_table_outlives_the_cache_only_where_a_graph_reads_it_again(
    capturing, monkeypatch
) -> None:
    monkeypatch.setattr(_adamw_update, "_is_capturing", lambda device: capturing)
    made, build = [], _adamw_update._cached_table

    def remembered(*key):
        table = build(*key)
        made.append(weakref.ref(table.rows))
        return table

    monkeypatch.setattr(_adamw_update, "_cached_table", remembered)
    params = parameters()
    run(AdamW(params, max_norm=1.0, impl="triton"), params, range(1))
    build.cache_clear()
    gc.collect()
    assert len(made) == 2
    assert all((table() is not None) == capturing for table in made)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_what_a_step_writes_counts_as_written(impl) -> None:
    params = parameters()
    optimizer = AdamW(params, impl=impl)
    before = [p._version for p in params]
    run(optimizer, params, range(1))
    for version, p in zip(before, params, strict=True):
        assert p._version > version or not p.numel()


def test_work_is_28_bytes_a_parameter() -> None:
    assert adamw_work(10**9).bytes == 28 * 10**9


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_whole_chunks_are_read_16_bytes_a_thread(target) -> None:
    """Both branches together: the masked one alone takes 32 loads, a narrow whole one 32 more."""
    reports = compile_all("tests.ops.aot_training", target)
    assert reports["adamw-fp32-graph"].opcodes["LDG"] < 64


@pytest.mark.gpu
def test_on_the_device_one_launch_no_wait_and_in_a_graph(device) -> None:
    shapes = [(4096, 1024), (1024,), (50_000, 64), (7,), (0,)]
    ours = [nn.Parameter(p.to(device)) for p in parameters(shapes)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    generator = torch.Generator(device).manual_seed(0)
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape, generator=generator, device=device)
        b.grad = a.grad.clone()
    optimizer = AdamW(ours, torch.tensor(0.01, device=device), max_norm=1e9)
    plain = torchs(theirs, lr=0.01)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    _adamw_update._cached_table.cache_clear()
    others = torch.zeros(256, 128, dtype=torch.int32).unbind()
    others = [t.to(device) for t in others]  # would take the place of a table set free
    graph.replay()
    assert not any(t.any() for t in others)
    for _ in range(3):
        plain.step()
    assert_same(ours, theirs, slack=5)
