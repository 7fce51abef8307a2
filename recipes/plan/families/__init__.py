"""Models to plan: twelve families, tiny and as published."""

from recipes.plan.families.family import Family, families, family

__all__ = ["Family", "families", "family"]
