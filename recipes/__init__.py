"""Recipes: whole systems composed from ``blocks``, each run as ``python -m recipes.<name>``."""
