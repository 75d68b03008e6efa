"""Panels: widgets for notebooks. What a panel holds and computes is in `state.py`, free of widgets."""

from .state import SteeringState
from .studio import Studio, studio

__all__ = ["SteeringState", "Studio", "studio"]
