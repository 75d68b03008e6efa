"""Panels: widgets for notebooks. What a panel holds and computes is in a module free of widgets."""

from .annotate import Annotate, annotate
from .review import ReviewState
from .states.steering import SteeringState
from .studio import Studio, studio

__all__ = ["Annotate", "ReviewState", "SteeringState", "Studio", "annotate", "studio"]
