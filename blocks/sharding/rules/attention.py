"""Attention over whole contexts: forward with the log of the sums, and backward.

Queries are [batch, head, query, channel], keys and values [batch, kv head, key, channel]. The
keys of a query stay together; queries may be cut, which is context parallelism with gathered keys.
"""

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, rule_of, spread


def attention_rule(
    query: Shape,
    key: Shape,
    value: Shape | None = None,
    *,
    mask: Shape | None = None,
    lse: bool = True,
    cut_queries: bool = True,
) -> OpRule:
    """Softmax attention, with or without ``lse`` [batch, head, query] as second output.

    With several query heads for each head of keys the ranks take whole groups of them; a single
    head of keys is held by all ranks instead. Locally, a causal mask counts from where the rank's
    queries begin.

    Args:
        value: None for that of the keys.
        mask: added to the scores; its dims are those of the scores, or 1.
        cut_queries: False where the operation at hand cannot begin its mask at a later query.

    >>> rule = attention_rule((2, 8, 16, 64), (2, 2, 16, 64))
    >>> rule.factors
    (Factor(batch=2 parallel), Factor(head=2 parallel even), Factor(query=16 parallel), ...
    """
    sizes, q, kv, even = _attention(query, key)
    channels = (query[-1], (value or key)[-1])
    inputs = [q, kv, kv]
    if mask is not None:
        inputs.append(_along_scores(mask, query, key, sizes))
    return rule_of(
        sizes,
        inputs,
        [q, *[q.removesuffix(" _")] * lse],
        linear=[(2,)] if not lse else [],
        flops_per_point=2 * sum(channels) * _heads_per_factor(query, sizes),
        whole="key" if cut_queries else "key query",
        even=even,
    )


def attention_backward_rule(
    query: Shape,
    key: Shape,
    value: Shape | None = None,
    *,
    mask: Shape | None = None,
    cut_queries: bool = True,
) -> OpRule:
    """From (grad, query, key, value, out, lse[, mask]) to the gradients of query, key, value.

    Ranks that cut the queries, or the heads over one head of keys, are left with addends of the
    gradients of keys and values. The scores are made anew.
    """
    sizes, q, kv, even = _attention(query, key)
    channels = 3 * query[-1] + 2 * (value or key)[-1]
    inputs = [q, q, kv, kv, q, q.removesuffix(" _")]
    if mask is not None:
        inputs.append(_along_scores(mask, query, key, sizes))
    return rule_of(
        sizes,
        inputs,
        [q, kv, kv],
        linear=[(0,)],
        flops_per_point=2 * channels * _heads_per_factor(query, sizes),
        whole="key" if cut_queries else "key query",
        even=even,
    )


def _attention(query: Shape, key: Shape) -> tuple[dict[str, int], str, str, str]:
    """Sizes of the factors; names along queries and along keys; the even ones."""
    check(len(query) == 4 and len(key) == 4, "query and key", "four dims", (query, key))
    heads, kv_heads = query[1], key[1]
    check(heads % kv_heads == 0, "query heads", f"a multiple of {kv_heads}", heads)
    single = kv_heads == 1
    sizes = {"batch": query[0], "head": heads if single else kv_heads}
    sizes |= {"query": query[2], "key": key[2]}
    kv = "batch _ key _" if single and heads > 1 else "batch head key _"
    return sizes, "batch head query _", kv, "" if heads in (kv_heads, sizes["head"]) else "head"


def _heads_per_factor(query: Shape, sizes: dict[str, int]) -> int:
    return query[1] // sizes["head"]


def _along_scores(mask: Shape, query: Shape, key: Shape, sizes: dict[str, int]) -> str:
    scores = {"batch": query[0], "head": query[1], "query": query[2], "key": key[2]}
    names = list(scores)[4 - len(mask) :]
    return spread(names, mask, {name: scores[name] for name in names})
