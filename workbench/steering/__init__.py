"""Steering methods, one file each, and the contract they share (`intervention.py`, `run.py`)."""

from .base import Base
from .caa import CAA
from .conva import ConVA
from .ica import ICA
from .intervention import Intervention
from .random_direction import RandomDirection

__all__ = ["CAA", "ICA", "Base", "ConVA", "Intervention", "RandomDirection"]
