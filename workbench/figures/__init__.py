"""Plotly figures, pure functions of data: returned, never shown.

Every figure says in its title what is measured, on its axes the units, in its hovers n and 95 % intervals where the
data have them. Text that comes from a model or a file is escaped. A value has one colour everywhere (`COLOURS`).
"""

from .auditing import audit_figure
from .circle import circle_map, cosine_heatmap, permutation_null
from .probing import probe_accuracy, transfer_by_step
from .steering import csr_bars, gate_histogram, steering_reading, value_profile
from .style import COLOURS, METHODS, TEMPLATE, escape

__all__ = [
    "COLOURS", "METHODS", "TEMPLATE", "audit_figure", "circle_map", "cosine_heatmap", "csr_bars", "escape",
    "gate_histogram", "permutation_null", "probe_accuracy", "steering_reading", "transfer_by_step", "value_profile",
]  # fmt: skip
