"""Pictures of a parallel plan: one HTML page, or the SVGs it is made of. Needs no torch."""

from recipes.plan.view.device_map import device_map
from recipes.plan.view.memory_bars import memory_bars
from recipes.plan.view.page import plan_page
from recipes.plan.view.parameter_tiles import parameter_tiles

__all__ = ["device_map", "memory_bars", "parameter_tiles", "plan_page"]
