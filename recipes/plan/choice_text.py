"""Strategies as short texts: for every mesh axis the factor it cuts. Needs no torch."""

from collections.abc import Sequence

from blocks._checks import check, fail
from blocks.sharding import REPLICATE, OpRule

BETWEEN, NOTHING, ADDENDS = "|", "-", "+"


def choice_text(rule: OpRule, choices: Sequence[int]) -> str:
    """The choices of a strategy: factor names, ``-`` for an axis that cuts nothing, ``+k`` for
    one whose ranks hold addends of the inputs ``rule.linear[k]``.

    >>> from blocks.sharding import Factor
    >>> rule = OpRule((Factor("row", 8), Factor("column", 4)), (), ((0, 1),), ())
    >>> choice_text(rule, (1, -1)), parse_choice(rule, "column|-")
    ('column|-', (1, -1))
    """
    names = factor_names(rule)
    return BETWEEN.join(
        NOTHING if c == REPLICATE else f"{ADDENDS}{-2 - c}" if c < 0 else names[c] for c in choices
    )


def parse_choice(rule: OpRule, text: str, name: str = "choice") -> tuple[int, ...]:
    """The choices that ``choice_text`` writes as ``text``.

    Args:
        name: of the operation, for the message.

    Raises:
        ValueError: a factor the rule does not have.
    """
    names = factor_names(rule)
    return tuple(_choice(rule, names, part, name) for part in text.split(BETWEEN))


def _choice(rule: OpRule, names: Sequence[str], part: str, name: str) -> int:
    if part == NOTHING:
        return REPLICATE
    if part.startswith(ADDENDS):
        known = [f"{ADDENDS}{k}" for k in range(len(rule.linear))]
        check(part in known, name, f"one of {known}", repr(part))
        return -2 - int(part[1:])
    if part not in names:
        raise fail(name, f"a factor of {list(names)}, '-' or '+k'", repr(part))
    return names.index(part)


def factor_names(rule: OpRule) -> tuple[str, ...]:
    """Names of the factors, numbered where two are called the same."""
    names = [factor.name for factor in rule.factors]
    return tuple(
        name if names.count(name) == 1 else f"{name}#{names[:at].count(name)}"
        for at, name in enumerate(names)
    )
