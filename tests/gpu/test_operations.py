"""Every operation on an accelerator: right, repeatable, written whole, no wait, graph-safe."""

from typing import Any

import pytest
import torch

from benches.machine import launch_seconds
from benches.matrix.row import Setting
from tests.contract_table import TABLE, operation
from tests.gpu.real_sizes import REAL, SLACK, decode, extend, prefill
from tests.gpu.running import assert_same, moved, run
from tests.test_kernels_contract import FAST, left_unwritten, same_bits

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
WAITING = {"kv.copy_blocks": "takes a list of pairs", "kv.swap_blocks": "takes a list of pairs"}
"""Operations whose host arguments are sent along with each call."""
KERNELS = [name for name in FAST if name not in WAITING]
VARIANTS: list[dict[str, Any]] = [
    {"window": 1024},
    {"softcap": 30.0},
    {"sinks": True, "alibi_slopes": True},
    {"head_dim": 64, "num_heads": 16, "num_kv_heads": 16},
    {"head_dim": 80, "num_heads": 16, "num_kv_heads": 4},
    {"head_dim": 256, "num_heads": 16, "num_kv_heads": 8, "softcap": 50.0, "window": 700},
]
SIZES = ("head_dim", "num_heads", "num_kv_heads")


def shown(variant: dict[str, Any]) -> str:
    return "-".join(f"{key}{value}" for key, value in variant.items())


@pytest.mark.parametrize("name", FAST)
def test_small_inputs_match_the_reference(name):
    given = TABLE[name].make()
    expected = run(name, given, torch.device("cpu"), impl="reference")
    assert_same(run(name, given, CUDA), expected, name)


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_match_the_reference(name):
    given = REAL[name](Setting(CUDA))
    found, expected = (run(name, given, CUDA, impl=how) for how in (None, "reference"))
    assert_same(found, expected, name, SLACK.get(name))


@pytest.mark.parametrize("variant", VARIANTS, ids=shown)
@pytest.mark.parametrize("make", [decode, extend, prefill], ids=lambda make: make.__name__)
def test_attention_features_at_real_sizes(make, variant):
    name = "attention.prefill" if make is prefill else f"attention.paged_{make.__name__}"
    given = make(Setting(CUDA), **{k: v for k, v in variant.items() if k in SIZES})
    options = {k: v for k, v in variant.items() if k not in SIZES}
    for key in ("sinks", "alibi_slopes"):
        if key in options:
            options[key] = torch.linspace(0.01, 0.5, given["query"].shape[1], device=CUDA)
    given |= {**options, "return_lse": True}
    assert_same(run(name, given, CUDA), run(name, given, CUDA, impl="reference"), name)


@pytest.mark.parametrize("name", REAL)
def test_the_same_bits_every_time(name):
    given = REAL[name](Setting(CUDA))
    first = run(name, given, CUDA)
    for _ in range(3):
        assert same_bits(first, run(name, given, CUDA))


@pytest.mark.parametrize("name", FAST)
def test_all_of_a_result_is_written(name):
    given = REAL[name](Setting(CUDA)) if name in REAL else TABLE[name].make()
    torch.use_deterministic_algorithms(True)
    try:
        assert not left_unwritten(run(name, given, CUDA))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", KERNELS)
def test_no_call_waits_for_the_device(name):
    given = moved(TABLE[name].make(), CUDA)
    call = operation(name)
    call(**moved(given, CUDA))  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(**given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", KERNELS)
def test_a_captured_graph_gives_what_the_call_gives(name):
    given = moved(TABLE[name].make(), CUDA)
    expected = run(name, given, CUDA)
    graph, found = captured(name, given)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    if not TABLE[name].written:  # what is written in place is another thing the second time
        assert same_bits(found, expected)


def captured(name: str, given: dict[str, Any]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """A graph of one call on ``given`` itself, and the tensors its replays write."""
    from tests.contract_table import tensors

    call = operation(name)
    call(**given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tensors(call(**given))
    return graph, found


@pytest.mark.parametrize("make", [decode, extend], ids=lambda make: make.__name__)
def test_a_graph_is_replayed_with_other_lengths(make):
    """Lengths, blocks and queries are written over the captured ones, as a server does."""
    name = f"attention.paged_{make.__name__}"
    given = make(Setting(CUDA))
    graph, found = captured(name, given)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        least = given["cu_seqlens_q"].diff().tolist() if "cu_seqlens_q" in given else [0] * 6
        longest = given["block_table"].shape[1] * given["key_cache"].shape[1]
        lens = [int(torch.randint(low, longest + 1, (), generator=generator)) for low in least]
        table = torch.randint(0, len(given["key_cache"]), given["block_table"].shape)
        given["seq_lens"].copy_(torch.tensor(lens, dtype=torch.int32))
        given["block_table"].copy_(table.int())
        given["query"].normal_()
        graph.replay()
        expected = run(name, given, CUDA, impl="reference")
        assert_same(found, expected, name)


def test_gradients_at_real_sizes():
    from benches.cases import PackedCase
    from benches.peers.torch_attention import upstream

    sizes = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "device": CUDA, "grad": True}
    case = PackedCase.random(2, 2048, **sizes)
    output = operation("attention.prefill")(*case.tensors, case.cu_seqlens, impl="triton")
    grad = upstream(output)
    found = [torch.autograd.grad(output, case.tensors, grad, retain_graph=True) for _ in range(2)]
    case.check_gradients(found[0], grad)
    assert same_bits(list(found[0]), list(found[1])), "gradients differ from run to run"


@pytest.mark.parametrize("name", KERNELS)
def test_a_launch_costs_the_host_little(name, record_property):
    """Generous, as the figure is a row of the matrix: this catches a compile in each call."""
    given = moved(TABLE[name].make(), CUDA)
    seconds = launch_seconds(lambda: operation(name)(**given), CUDA)
    record_property("launch_us", round(seconds * 1e6, 1))
    assert seconds < 1e-3, f"{name}: {seconds * 1e6:.0f} us"
