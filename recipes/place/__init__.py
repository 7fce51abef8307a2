"""Many models on one cluster. Needs no torch to import."""

from recipes.place.config import PlaceConfig, PlacedModel

__all__ = ["PlaceConfig", "PlacedModel"]
