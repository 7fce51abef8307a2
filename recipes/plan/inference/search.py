"""``plan_inference``: a model in every configuration that the devices allow. Needs numpy."""

import math
from collections.abc import Callable, Mapping, Sequence

from blocks._checks import check, fail
from blocks.pipeline.inter_op import DoesNotFit
from blocks.pipeline.view.scale import bytes_text
from blocks.sharding import Cluster
from recipes.plan.inference.config import InferenceConfig, numbers
from recipes.plan.inference.op_mesh import LayerTime, OpMesh
from recipes.plan.inference.plan import Configuration, InferencePlan
from recipes.plan.inference.served_model import generates, served_layers, tokens_of
from recipes.plan.inference.stage_times import cut_layers, staged
from recipes.plan.layers.chain import LayerChain
from recipes.plan.parallel_plan import Fingerprint
from recipes.plan.search.transfers import boundary_bytes

Key = tuple[str, int, int]
"""Kind, size and context of a pass."""
Note = Callable[[str], None]


def plan_inference(
    config: InferenceConfig, cluster: Cluster, *, note: Note = lambda text: None
) -> InferencePlan:
    """Configurations of powers of two of devices, each with the cut whose slowest stage is fastest.

    Raises:
        ValueError: a model that cannot be served, or that fits no configuration.
    """
    sizes = numbers("batch_sizes", config.batch_sizes)
    most = _most(config, cluster)
    length = config.seq_len or tokens_of(config)
    whole = served_layers(config, seq_len=length, note=note)
    chains = {size: whole(size) for size in sizes}
    first = chains[sizes[0]]
    prompts: dict[int, LayerChain] = {}
    decoded: dict[int, LayerChain] = {}
    if generates(config.model):
        every = config.prompts or ",".join(map(str, sorted({max(1, length // 4), length})))
        for tokens in numbers("prompts", every):
            prompt = served_layers(config, seq_len=tokens, note=note)
            prompts[tokens] = whole(1) if tokens == length else prompt(1)
        one = served_layers(config, seq_len=1, note=note)
        decoded = {size: one(size) for size in sizes}
    contexts = numbers("contexts", config.contexts)
    found: list[Configuration] = []
    left_out: list[str] = []
    least = (math.inf, 0, 0)
    memory = _memory_bytes(config, cluster)
    for op in _degrees(min(cluster.nodes[0].num_devices, config.max_op or most, most)):
        mesh = OpMesh(cluster, range(op))
        layers = mesh.layer_times(chains, keeps_kv=bool(decoded))
        times, sent = _batches(layers, chains)
        for tokens, chain in prompts.items():
            part = mesh.layer_times({1: chain})
            times["prefill", tokens, 0] = [layer.seconds[1] for layer in part]
            sent["prefill", tokens, 0] = _bounds(chain)
        if decoded:
            part = mesh.layer_times(decoded)
            for size, chain in decoded.items():
                for context in contexts:
                    key = ("decode", size, context)
                    times[key] = _decode_s(mesh, part, layers, size, context)
                    sent[key] = _bounds(chain)
        for pp in _degrees(min(most // op, config.max_pp or first.num_layers)):
            if pp > first.num_layers:
                break
            try:
                cuts = cut_layers(layers, times["batch", sizes[0], 0], op, pp, memory)
            except DoesNotFit as error:
                short = bytes_text(error.shortfall_bytes)
                left_out.append(f"{op} x {pp}: {short} of memory too few on a device")
                least = min(least, (error.shortfall_bytes, op, pp))
                continue
            found.append(staged(layers, times, sent, cluster, op, cuts))
        note(f"op {op}: {len(found)} configurations so far")
    if not found:
        raise _too_little_memory(config, memory, *least)
    kind = cluster.kind_of(0)
    return InferencePlan(
        Fingerprint(config.model, first.digest(), first.num_layers),
        Fingerprint(cluster.name, cluster.fingerprint(), cluster.num_devices),
        {**config.to_json(), "seq_len": length},
        kind.name,
        "; ".join(sorted(set(kind.sources.values()))),
        tuple(found),
        tuple(left_out),
    )


def _too_little_memory(
    config: InferenceConfig, memory_bytes: float, short_bytes: float, op: int, pp: int
) -> ValueError:
    """For the configuration that misses by least."""
    set_ = (name for name in ("max_op", "max_pp", "max_devices") if getattr(config, name))
    ways = [f"raise {name}={getattr(config, name)}" for name in set_]
    if config.memory_gib is not None:
        ways.append(f"raise memory_gib={config.memory_gib:g}")
    ways.append("lower batch_sizes, prompts or seq_len, or take a cluster of more devices")
    stages = f"{pp} stage{'s' if pp > 1 else ''} of {op} device{'s' if op > 1 else ''}"
    hint = f"{bytes_text(short_bytes)} too few for {stages}, which needs least; {', '.join(ways)}"
    needed = bytes_text(memory_bytes + short_bytes)
    return fail("memory of a device", needed, bytes_text(memory_bytes), hint)


def _degrees(most: int) -> list[int]:
    return [2**at for at in range(max(most, 0).bit_length())]


def _most(config: InferenceConfig, cluster: Cluster) -> int:
    most, hint = config.max_devices or cluster.num_devices, "or a larger cluster"
    fits = most <= cluster.num_devices
    check(fits, "max_devices", f"at most {cluster.num_devices}", most, hint)
    kinds = sorted({node.kind for node in cluster.nodes})
    check(len(kinds) == 1, "kinds of the nodes", "one", kinds, "plan for the nodes of one kind")
    return most


def _memory_bytes(config: InferenceConfig, cluster: Cluster) -> float:
    if config.memory_gib is not None:
        return config.memory_gib * 2**30
    return float(cluster.kind_of(0).memory_bytes)


def _batches(
    layers: Sequence[LayerTime], chains: Mapping[int, LayerChain]
) -> tuple[dict[Key, Sequence[float]], dict[Key, Sequence[float]]]:
    """Seconds of layers, and bytes over bounds, of every batch."""
    times: dict[Key, Sequence[float]] = {}
    sent: dict[Key, Sequence[float]] = {}
    for size, chain in chains.items():
        times["batch", size, 0] = [layer.seconds[size] for layer in layers]
        sent["batch", size, 0] = _bounds(chain)
    return times, sent


def _bounds(chain: LayerChain) -> list[float]:
    return [float(forward) for forward, _ in boundary_bytes(chain)]


def _decode_s(
    mesh: OpMesh,
    layers: Sequence[LayerTime],
    cached: Sequence[LayerTime],
    size: int,
    context: int,
) -> list[float]:
    """A token for each of ``size`` requests: a pass of one token, and the keys and values of the
    context read once."""
    found = []
    for layer, kept in zip(layers, cached, strict=True):
        held = round(size * context * kept.kv_bytes)
        found.append(layer.seconds[size] + (mesh.cost.work_s(0, held, "float32") if held else 0.0))
    return found
