"""How a decoder's parameters are cut over tensor-parallel ranks, by name, as data."""

import itertools
from collections.abc import Mapping

from blocks._checks import check
from blocks.sharding import Cut
from recipes.model.config import ModelConfig

Cuts = Mapping[str, Cut]
"""By name of the parameter in ``recipes.model.Decoder``. Parameters that are not in it are whole on
every rank and have the same gradient there."""


def tensor_parallel_cuts(
    config: ModelConfig, num_ranks: int, *, vocabulary: bool = False, sequence: bool = False
) -> dict[str, Cut]:
    """The cuts of all parameters of a decoder.

    Query heads are dealt out in runs, and with them the key and value heads they read: where these
    are fewer than the ranks, several ranks hold a copy. MLPs are cut along their inner width,
    experts each along theirs.

    Args:
        vocabulary: cut the embedding and the head along the vocabulary.
        sequence: between the cut layers each rank works on a run of the tokens, so that what is
            whole there (norms, biases added after a sum) gets addends of its gradient.

    Raises:
        ValueError: ``num_ranks`` that does not divide the query heads.
    """
    heads = config.num_heads
    hint = "tensor-parallel ranks take whole heads"
    check(heads % num_ranks == 0, "tp", f"a divisor of num_heads ({heads})", num_ranks, hint)
    cuts: dict[str, Cut] = {}
    for layer in range(config.num_layers):
        of_layer = _attention(config, num_ranks, sequence) | _mlp(config, num_ranks, sequence)
        if sequence:
            of_layer |= _norms(config, num_ranks)
        cuts |= {f"layers.{layer}.{name}": cut for name, cut in of_layer.items()}
    if vocabulary:
        rows = Cut.even(0, config.vocab_size, num_ranks)
        cuts |= {"embed.weight": rows, "head.weight": rows}
    return cuts


def kv_heads_of(config: ModelConfig, num_ranks: int) -> list[list[int]]:
    """For every rank the key and value heads it holds, as many queries to each.

    Where the queries of a rank are not evenly spread over the heads they read, each query gets a
    copy of its own.

    >>> from recipes.model import ModelConfig
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, head_dim=2)
    >>> few = ModelConfig("llama", num_heads=4, num_kv_heads=2, max_positions=8, **sizes)
    >>> kv_heads_of(few, 2), kv_heads_of(few, 4)
    ([[0], [1]], [[0], [0], [1], [1]])
    """
    count, group = config.num_heads // num_ranks, config.num_heads // config.num_kv_heads
    found = []
    for rank in range(num_ranks):
        read = [head // group for head in range(rank * count, rank * count + count)]
        runs = {kv: len(list(queries)) for kv, queries in itertools.groupby(read)}
        found.append(list(runs) if len(set(runs.values())) == 1 else read)
    return found


def _attention(config: ModelConfig, num_ranks: int, sequence: bool) -> dict[str, Cut]:
    width = config.num_heads * config.head_dim
    query = Cut.even(0, width, num_ranks)
    kv = Cut.of_units(0, config.head_dim, kv_heads_of(config, num_ranks))
    rows = Cut.of_parts(0, [query, kv, kv])
    cuts = {"qkv.weight": rows, "out.weight": Cut.even(1, width, num_ranks)}
    if config.qkv_bias:
        cuts["qkv.bias"] = rows
    if config.out_bias and sequence:
        cuts["out.bias"] = Cut.whole(0, config.hidden_size, num_ranks)
    if config.qk_norm:  # every rank norms its own heads
        names = ["weight", "bias"] if config.norm == "layer" else ["weight"]
        for part, name in itertools.product(("query_norm", "key_norm"), names):
            cuts[f"{part}.{name}"] = Cut.whole(0, config.head_dim, num_ranks)
    return {f"attention.{name}": cut for name, cut in cuts.items()}


def _mlp(config: ModelConfig, num_ranks: int, sequence: bool) -> dict[str, Cut]:
    inner, experts = config.intermediate_size, config.num_experts
    hint = "tensor-parallel ranks share it"
    check(inner >= num_ranks, "intermediate_size", f"at least tp ({num_ranks})", inner, hint)
    dim = 1 if experts else 0
    half = Cut.even(dim, inner, num_ranks)
    pair, columns = Cut.of_parts(dim, [half, half]), Cut.even(dim + 1, inner, num_ranks)
    if experts:  # the router is whole, but weighs what only this rank has computed
        router = Cut.whole(0, experts, num_ranks)
        return {"mlp.gate_up": pair, "mlp.down": columns, "mlp.router.weight": router}
    name, rows = ("gate_up", pair) if config.gated_mlp else ("up", half)
    cuts = {f"mlp.{name}.weight": rows, "mlp.down.weight": columns}
    if config.mlp_bias:
        cuts[f"mlp.{name}.bias"] = rows
        if sequence:
            cuts["mlp.down.bias"] = Cut.whole(0, config.hidden_size, num_ranks)
    return cuts


def _norms(config: ModelConfig, num_ranks: int) -> dict[str, Cut]:
    names = ["attention_norm", "mlp_norm"]
    if config.norm_order == "sandwich":
        names += ["attention_post_norm", "mlp_post_norm"]
    kinds = ["weight", "bias"] if config.norm == "layer" else ["weight"]
    whole = Cut.whole(0, config.hidden_size, num_ranks)
    return {f"{name}.{kind}": whole for name, kind in itertools.product(names, kinds)}
