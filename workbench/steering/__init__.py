"""Steering methods, one file each, and the contract they share (`intervention.py`, `run.py`)."""

from .base import Base
from .caa import CAA
from .conva import ConVA
from .dpnle import DPNLE
from .ica import ICA
from .intervention import Intervention
from .lape import LAPE
from .lora import LoRA
from .neva import NeVA
from .npti import NPTI
from .random_direction import RandomDirection
from .scale_neurons import ScaleNeurons
from .scav import SCAV

__all__ = [
    "CAA", "DPNLE", "ICA", "LAPE", "NPTI", "SCAV", "Base", "ConVA", "Intervention", "LoRA", "NeVA", "RandomDirection",
    "ScaleNeurons",
]  # fmt: skip
