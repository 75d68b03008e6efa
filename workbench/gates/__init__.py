"""Gates: who gets steered. A gate reads a prompt and says whether it is about values at all.

A gate inside a forward pass sees the residual stream at its layer and the last prompt token, before any
intervention, so that its decision is the one `scores` tells for the same prompts. One file per gate:

    always.py    AlwaysOpen and Never, the ablation and the control
    detector.py  DetectorGate: a text classifier on the bare question, the published gate of ConVA
    probe.py     ProbeGate: a logistic probe of the model's own residual
    cosine.py    CosineGate: the residual's cosine with a condition direction

`gate.py` says what all of them answer, `threshold.py` how a threshold is chosen and what it costs.
"""

from .always import AlwaysOpen, Never
from .cosine import CosineGate
from .detector import G0, Classifier, DetectorGate, load_classifier
from .gate import Gate, unpack_gate, unsteered
from .probe import ProbeGate
from .threshold import ThresholdGate

__all__ = [
    "G0", "AlwaysOpen", "Classifier", "CosineGate", "DetectorGate", "Gate", "Never", "ProbeGate", "ThresholdGate",
    "load_classifier", "unpack_gate", "unsteered",
]  # fmt: skip
