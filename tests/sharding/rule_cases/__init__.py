"""Operations with small tensors drawn at random, under the rules they are audited against."""

from tests.sharding.rule_cases import activations, indexed, moves, products
from tests.sharding.rule_cases.case import CASES, Case

__all__ = ["CASES", "Case", "activations", "indexed", "moves", "products"]
