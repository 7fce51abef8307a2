"""Pictures of placements: one HTML page, or the SVGs it is made of. Needs no torch."""

from recipes.place.view.curve_charts import curve_charts
from recipes.place.view.occupancy import occupancy
from recipes.place.view.pages import plan_page, simulation_page
from recipes.place.view.placement_map import placement_map

__all__ = ["curve_charts", "occupancy", "placement_map", "plan_page", "simulation_page"]
