"""Mixtures of experts with a fixed capacity, as products with a mask of who goes where."""

from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.einsum import einsum_rule
from blocks.sharding.rules.rule_of import Shape, rule_of

_NAMES = {"g": "group", "s": "token", "e": "expert", "c": "slot", "m": "channel"}


def moe_dispatch_rule(mask: Shape, x: Shape) -> OpRule:
    """(mask [group, token, expert, slot], x [group, token, channel]) to the experts' inputs
    [expert, group, slot, channel].

    >>> [factor.name for factor in moe_dispatch_rule((2, 8, 4, 3), (2, 8, 6)).factors]
    ['expert', 'group', 'slot', 'channel', 'token']

    Reference:
        Lepikhin et al., "GShard", 2020, section 3.2.
    """
    return einsum_rule("gsec,gsm->egcm", [mask, x], names=_NAMES)


def moe_combine_rule(mask: Shape, outputs: Shape) -> OpRule:
    """(weights [group, token, expert, slot], experts' outputs [expert, group, slot, channel]) to
    [group, token, channel]: an expert that is cut leaves addends."""
    return einsum_rule("gsec,egcm->gsm", [mask, outputs], names=_NAMES)


def grouped_matmul_rule(x: Shape, weight: Shape) -> OpRule:
    """(x [token, in] sorted by expert, weight [expert, in, out], ends [expert]) to [token, out].

    Ranks that cut the experts work on the tokens of theirs and give zeros for the others: addends.
    The tokens of an expert count as the mean of all, rounded up.
    """
    tokens, (experts, _, _) = x[0], weight
    return rule_of(
        {"expert": experts, "out": weight[2], "in": weight[1]},
        ["_ in", "expert in out", "_"],
        ["_ out"],
        linear=[(0,), (1,)],
        flops_per_point=2 * -(-tokens // experts),
    )


def selective_scan_rule(x: Shape, num_states: int) -> OpRule:
    """(x, dt [batch, channel, time], A [channel, state], B, C [batch, state, time]) to [batch,
    channel, time]: a state space layer, whose time is not cut; states that are cut leave addends.

    Reference:
        Gu and Dao, "Mamba", 2023, algorithm 2.
    """
    batch, channels, time = x
    along = "batch channel time"
    return rule_of(
        {"batch": batch, "channel": channels, "time": time, "state": num_states},
        [along, along, "channel state", *["batch state time"] * 2],
        [along],
        linear=[(0,), (3,), (4,)],
        flops_per_point=6,
        whole="time",
    )
