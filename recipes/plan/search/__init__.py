"""The search for a plan: ways to run layers, stages and their submeshes, strategies within stages.

Needs numpy, no torch.
"""

from recipes.plan.search.search import search

__all__ = ["search"]
