"""Panels: widgets for notebooks, each made by one call. What they hold and compute is free of widgets (`states`)."""

from .annotate import Annotate, annotate
from .dial import Dial
from .gate_tuner import GateTuner, gate_tuner
from .geometry import Geometry, geometry
from .leakage_map import LeakageMap, leakage_map
from .neuron_explorer import NeuronExplorer, neuron_explorer
from .panel import Panel
from .plot import Plot
from .probe_explorer import ProbeExplorer, probe_explorer
from .results_browser import ResultsBrowser, results_browser
from .review import ReviewState
from .states.steering import SteeringState
from .studio import Studio, studio

__all__ = [
    "Annotate", "Dial", "GateTuner", "Geometry", "LeakageMap", "NeuronExplorer", "Panel", "Plot", "ProbeExplorer",
    "ResultsBrowser", "ReviewState", "SteeringState", "Studio", "annotate", "gate_tuner", "geometry", "leakage_map",
    "neuron_explorer", "probe_explorer", "results_browser", "studio",
]  # fmt: skip
