"""What operations do on local parts where it is not what they do on the whole."""

from recipes.plan.execute.twins.twin import Twin, twin_of

__all__ = ["Twin", "twin_of"]
