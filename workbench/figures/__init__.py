"""Plotly figures, pure functions of data: returned, never shown.

Every figure says in its title what is measured, on its axes the units, in its hovers n and 95 % intervals where the
data have them. Text that comes from a model or a file is escaped. A value has one colour everywhere (`COLOURS`). All
are drawn for white pages; `dark` makes the same figure for dark ones, `save` writes it to a file.
"""

from .answering import answer_profiles, nothing
from .auditing import audit_figure
from .circle import circle_map, cosine_heatmap
from .circumplex import circular_profile, layer_geometry, permutation_null, similarity_by_step
from .clouds import activation_map
from .evaluating import ablations, csr_circle, forest, negative_prompts, pareto
from .exploring import probe_grid, probe_reading
from .gating import threshold_histogram, threshold_roc
from .leaking import leakage_by_step, leakage_circle, leakage_matrix
from .neurons import neuron_map, neuron_overlaps, neuron_responses
from .probing import probe_accuracy, transfer_by_step
from .reliability import calibration_curve, generalisation, layer_curves
from .rises import leakage_row, rise_profile
from .steering import csr_bars, gate_histogram, gate_roc, steering_reading, value_profile
from .style import COLOURS, CONTROLS, METHODS, TEMPLATE, escape
from .themes import dark, save
from .tracing import steering_strip
from .tuning import dose_response

__all__ = [
    "COLOURS", "CONTROLS", "METHODS", "TEMPLATE", "ablations", "activation_map", "answer_profiles", "audit_figure",
    "calibration_curve", "circle_map", "circular_profile", "cosine_heatmap", "csr_bars", "csr_circle", "dark",
    "dose_response", "escape", "forest", "gate_histogram", "gate_roc", "generalisation", "layer_curves",
    "layer_geometry", "leakage_by_step", "leakage_circle", "leakage_matrix", "leakage_row", "negative_prompts",
    "neuron_map", "neuron_overlaps", "neuron_responses", "nothing", "pareto", "permutation_null", "probe_accuracy",
    "probe_grid", "probe_reading", "rise_profile", "save", "similarity_by_step", "steering_reading", "steering_strip",
    "threshold_histogram", "threshold_roc", "transfer_by_step", "value_profile",
]  # fmt: skip
