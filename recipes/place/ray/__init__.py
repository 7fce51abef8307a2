"""The same groups on Ray: a placement group each, their processes actors inside of it.

Importing this needs no Ray; ``RayCluster(...)`` does, and says what to install.
"""

from recipes.place.ray.bundles import Bundles, bundles_of
from recipes.place.ray.cluster import RayCluster
from recipes.place.ray.group import RayGroup
from recipes.place.ray.ranks import RayRanks
from recipes.place.ray.seats import Seat, Seats

__all__ = ["Bundles", "RayCluster", "RayGroup", "RayRanks", "Seat", "Seats", "bundles_of"]
