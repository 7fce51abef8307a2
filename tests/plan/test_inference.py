"""Serving plans: forward passes alone, rows never cut, the slowest stage as fast as can be."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sched.profile import load_profile, save_profile
from blocks.sharding import Cluster, Mesh, Shard, bundled_cluster, strategies
from recipes.plan.families.decoder_sizes import decoder_config
from recipes.plan.inference import search
from recipes.plan.inference.config import InferenceConfig
from recipes.plan.inference.forward_graph import COPY
from recipes.plan.inference.op_mesh import LayerTime
from recipes.plan.inference.plan import InferencePlan
from recipes.plan.inference.profile import profile_of
from recipes.plan.inference.search import plan_inference
from recipes.plan.inference.served_model import served_layers
from recipes.plan.inference.stage_times import cut_layers
from recipes.plan.inference.table import table
from recipes.plan.inference.token_cuts import cuts_weights, token_factors
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.compose import compose

SIZE = "tiny,hidden_size=256,intermediate_size=1024,num_heads=4,num_kv_heads=4"
MODEL = f"decoder:{SIZE}"
SEQ_LEN = 16
ASKED = InferenceConfig(MODEL, seq_len=SEQ_LEN, batch_sizes="1,4", prompts="16", contexts="64")


@pytest.fixture(scope="module")
def chains() -> Callable[[int], LayerChain]:
    return served_layers(ASKED)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return bundled_cluster("8xH100", num_devices=4)


@pytest.fixture(scope="module")
def plan(chains: Callable[[int], LayerChain], cluster: Cluster) -> InferencePlan:
    """Decoding is priced as if each token were a prompt: the trace is shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "served_layers", lambda *_, **__: chains)
        return plan_inference(ASKED, cluster)


def test_only_the_forward_pass_is_left(chains: Callable[[int], LayerChain]) -> None:
    config, chain = decoder_config(SIZE), chains(4)
    nodes = [node for layer in chain.layers for node in layer.graph.nodes]
    assert {node.phase for node in nodes} == {"forward"}
    assert not {node.role for node in nodes} & {"accumulate", "update"}
    assert [n.name for n in nodes if n.op == "scores"] == ["scores"]
    copies = [node.name for node in nodes if node.name.endswith(COPY)]
    assert copies == [f"embed.weight{COPY}"], "a tied head is there where it is read"
    matrices = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    products = 2 * 4 * SEQ_LEN * config.num_layers * matrices
    scores = 2 * 4 * config.vocab_size * config.hidden_size  # of the last tokens alone
    attention = 2 * 2 * 4 * SEQ_LEN**2 * config.hidden_size * config.num_layers
    total = sum(node.rule.flops() for node in nodes)
    assert products + scores < total <= products + scores + attention


def test_rows_and_tokens_stay_whole_and_weights_are_cut(
    chains: Callable[[int], LayerChain], plan: InferencePlan
) -> None:
    graph = compose(chains(4), range(chains(4).num_layers))[0]
    factors = token_factors(graph)
    tokens = [n for n in graph.nodes if n.role == "input" and n.op == "input"]
    assert tokens
    assert all(factors[node.name] for node in tokens)
    allowed = cuts_weights(graph, Mesh.of(x=2))
    for node in graph.nodes:
        for one in filter(lambda s, n=node: allowed(n, s), strategies(node.rule, Mesh.of(x=2))):
            lies = zip(node.inputs, one.inputs, strict=True)
            rows = [p for v, p in lies if graph.values[v].shape[:2] == (4, SEQ_LEN)]
            assert not {(Shard(0),), (Shard(1),)} & set(rows), node.name
    config = decoder_config(SIZE)
    matrices = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    matrices = config.num_layers * matrices + config.vocab_size * config.hidden_size
    for op in (1, 2, 4):
        one = plan.configuration(op, 1)
        vectors = one.weight_bytes - 2 * matrices // op
        assert 0 < vectors <= 2 * (2 * config.num_layers + 1) * config.hidden_size
        cut = [name for name, text in one.placements.items() if text.startswith("S")]
        assert ("layers.*.mlp.down.weight" in cut) == (op > 1)


def test_bytes_are_those_of_the_model(plan: InferencePlan) -> None:
    config = decoder_config(SIZE)
    whole = plan.configuration(1, 1).stages[0]
    sizes = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    sizes = config.num_layers * (sizes + 2 * config.hidden_size) + config.hidden_size
    assert whole.weight_bytes == 2 * (sizes + config.vocab_size * config.hidden_size)
    assert whole.kv_bytes == config.kv_bytes_per_token(2)
    halves = plan.configuration(1, 2).stages
    assert sum(stage.kv_bytes for stage in halves) == whole.kv_bytes
    table_bytes = 2 * config.vocab_size * config.hidden_size
    assert sum(stage.weight_bytes for stage in halves) == whole.weight_bytes + table_bytes
    assert plan.configuration(2, 1).stages[0].kv_bytes == whole.kv_bytes // 2


def test_overheads_add_up(plan: InferencePlan) -> None:
    assert {(one.op, one.pp) for one in plan.configurations} == {
        *((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)),
    }
    for one in plan.configurations:
        first, over = one.first_pass(), one.overheads
        alone = plan.configuration(one.op, 1).first_pass().latency_s
        assert first.latency_s == pytest.approx(alone + over.send_s)
        assert one.pp * first.slowest_s == pytest.approx(first.latency_s + over.uneven_s)
        assert (over.send_s > 0) == (one.pp > 1)
        assert (over.collective_s > 0) == (one.op > 1)
    decode = [row for row in plan.configuration(1, 1).passes if row.kind == "decode"]
    assert [(row.size, row.context) for row in decode] == [(1, 64), (4, 64)]


def layer_of(seconds: float, size: int) -> LayerTime:
    return LayerTime({1: seconds}, {1: 0.0}, {"weight": size}, 0.0, {1: 0.0}, {})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(2, 30))
def test_no_cut_has_a_faster_slowest_stage(times: list[int], pp: int, memory: int) -> None:
    pp = min(pp, len(times))
    layers = [layer_of(float(one), one) for one in times]
    cuts = [
        list(itertools.pairwise((0, *inner, len(times))))
        for inner in itertools.combinations(range(1, len(times)), pp - 1)
    ]
    fitting = [
        max(sum(times[a:b]) for a, b in cut)
        for cut in cuts
        if max(sum(times[a:b]) for a, b in cut) <= memory
    ]
    if not fitting:
        with pytest.raises(ValueError, match="memory"):
            cut_layers(layers, list(map(float, times)), 1, pp, memory)
        return
    found = cut_layers(layers, list(map(float, times)), 1, pp, memory)
    assert max(sum(times[a:b]) for a, b in found) == min(fitting)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 3), st.integers(2, 30))
def test_tied_weights_fit_once(sizes: list[int], pp: int, memory: int) -> None:
    """The last layer reads the first one's weights: a stage with both holds them once."""
    pp = min(pp, len(sizes))
    layers = [
        dataclasses.replace(layer_of(1.0, size), weight_bytes={f"{at}.weight": size})
        for at, size in enumerate(sizes)
    ]
    tied = {"0.weight copy": sizes[0], "head.bias": 1}
    layers[-1] = dataclasses.replace(layers[-1], weight_bytes=tied)
    held = [*sizes[:-1], sizes[0] + 1]

    def most(cut: list[tuple[int, int]]) -> int:
        both = [a == 0 and b == len(sizes) for a, b in cut]
        return max(
            sum(held[a:b]) - sizes[0] * all_of_it
            for (a, b), all_of_it in zip(cut, both, strict=True)
        )

    cuts = [
        list(itertools.pairwise((0, *inner, len(sizes))))
        for inner in itertools.combinations(range(1, len(sizes)), pp - 1)
    ]
    fitting = [max(b - a for a, b in cut) for cut in cuts if most(cut) <= memory]
    seconds = [1.0] * len(sizes)
    if not fitting:
        with pytest.raises(ValueError, match="memory"):
            cut_layers(layers, seconds, 1, pp, memory)
        return
    found = cut_layers(layers, seconds, 1, pp, memory)
    assert most(found) <= memory
    assert max(b - a for a, b in found) == min(fitting)


def test_uneven_layers_are_cut_unevenly() -> None:
    times = [1.0] * 12 + [4.0]  # a heavy head
    cuts = cut_layers([layer_of(one, 1) for one in times], times, 2, 4, 1e9)
    slowest = max(sum(times[a:b]) for a, b in cuts)
    even = max(sum(times[a:b]) for a, b in ((0, 4), (4, 7), (7, 10), (10, 13)))
    assert (slowest, even) == (4.0, 6.0)


def test_plans_and_profiles_are_read_back(plan: InferencePlan, tmp_path: Path) -> None:
    assert InferencePlan.read(plan.write(tmp_path / "plan.json")) == plan
    profile = profile_of(plan)
    save_profile(profile, tmp_path / "one.profile")
    assert load_profile(tmp_path / "one.profile") == profile
    assert profile.provenance[0].kind == "simulated"
    assert profile.latency_s((2, 2), 4) == plan.configuration(2, 2).passes[1].latency_s
    assert len(table(plan)) == 3 + len(plan.configurations)
    with pytest.raises(ValueError, match="format"):
        InferencePlan.from_json({"format": "another"})
    with pytest.raises(ValueError, match="configuration: expected one of 1 x 1"):
        plan.configuration(8, 8)


def test_what_cannot_be_served_is_refused(
    chains: Callable[[int], LayerChain], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="model: expected a language model"):
        served_layers(InferenceConfig("unet:tiny"))(1)
    with pytest.raises(ValueError, match="batch_sizes: expected rising"):
        InferenceConfig("llama:8b", batch_sizes="4,1")
    with pytest.raises(ValueError, match="max_devices: expected at most 4"):
        plan_inference(dataclasses.replace(ASKED, max_devices=9), cluster)
    monkeypatch.setattr(search, "served_layers", lambda *_, **__: chains)
    tight = dataclasses.replace(ASKED, memory_gib=0.003, max_op=1)
    found = plan_inference(tight, cluster)
    assert found.left_out
    assert found.left_out[0].startswith("1 x 1: ")
    assert "too few" in found.left_out[0]
    assert found.configurations
    words = (
        r"memory of a device: expected .*, got 1.05 KiB; .* too few for \d+ stages? of 1 device, "
    )
    with pytest.raises(ValueError, match=words + "which needs least; raise max_op=1, ") as caught:
        plan_inference(dataclasses.replace(tight, memory_gib=1e-6), cluster)
    needed = re.search(r"expected ([\d.]+) MiB", str(caught.value))
    assert needed, caught.value
    enough = dataclasses.replace(tight, memory_gib=1.01 * float(needed[1]) / 1024)
    assert plan_inference(enough, cluster).configurations
