"""A cluster file of the machine this runs on, by a probe of minutes."""

from recipes.plan.calibrate.calibrate import calibrate, residuals
from recipes.plan.calibrate.command import main

__all__ = ["calibrate", "main", "residuals"]
