"""Value workbench: probe, map and steer basic human values inside transformer language models.

This module is the one door. Its names load on first use, so that `import workbench` costs neither torch nor
transformers:

    import workbench as wb

    model = wb.load_model("embedded:circle")
    probes = wb.fit_probes(model, wb.load_pairs("embedded"))
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; a test keeps it equal to _HOME
    from . import evaluation as evaluation
    from . import figures as figures
    from . import panels as panels
    from .activations import capture as capture
    from .activations import open_activations as open_activations
    from .audit import audit_pairs as audit_pairs
    from .audit import compare_audits as compare_audits
    from .errors import WorkbenchError as WorkbenchError
    from .evaluation import evaluate as evaluate
    from .evaluation import open_evaluation as open_evaluation
    from .evaluation import study as study
    from .gates import AlwaysOpen as AlwaysOpen
    from .gates import CosineGate as CosineGate
    from .gates import DetectorGate as DetectorGate
    from .gates import ProbeGate as ProbeGate
    from .gates import load_classifier as load_classifier
    from .generate import generate as generate
    from .geometry import circumplex_fit as circumplex_fit
    from .geometry import human_reference as human_reference
    from .labelled import load_labelled as load_labelled
    from .models import load_model as load_model
    from .neurons import select_neurons as select_neurons
    from .probes import Probes as Probes
    from .probes import fit_probes as fit_probes
    from .prompts import load_negative_prompts as load_negative_prompts
    from .prompts import load_pairs as load_pairs
    from .prompts import load_questions as load_questions
    from .prompts import load_unrelated as load_unrelated
    from .steering.base import Base as Base
    from .steering.caa import CAA as CAA
    from .steering.conva import ConVA as ConVA
    from .steering.dpnle import DPNLE as DPNLE
    from .steering.ica import ICA as ICA
    from .steering.lape import LAPE as LAPE
    from .steering.lora import LoRA as LoRA
    from .steering.neva import NeVA as NeVA
    from .steering.npti import NPTI as NPTI
    from .steering.random_direction import RandomDirection as RandomDirection
    from .steering.scale_neurons import ScaleNeurons as ScaleNeurons
    from .steering.scav import SCAV as SCAV
    from .values import VALUES as VALUES
    from .vectors import ValueVectors as ValueVectors

__version__ = "0.1.0"

# Public name -> the module it lives in.
_HOME = {
    "AlwaysOpen": "gates",
    "Base": "steering.base",
    "CAA": "steering.caa",
    "ConVA": "steering.conva",
    "CosineGate": "gates",
    "DPNLE": "steering.dpnle",
    "DetectorGate": "gates",
    "ICA": "steering.ica",
    "LAPE": "steering.lape",
    "LoRA": "steering.lora",
    "NPTI": "steering.npti",
    "NeVA": "steering.neva",
    "ProbeGate": "gates",
    "Probes": "probes",
    "RandomDirection": "steering.random_direction",
    "SCAV": "steering.scav",
    "ScaleNeurons": "steering.scale_neurons",
    "VALUES": "values",
    "ValueVectors": "vectors",
    "WorkbenchError": "errors",
    "audit_pairs": "audit",
    "capture": "activations",
    "circumplex_fit": "geometry",
    "compare_audits": "audit",
    "evaluate": "evaluation",
    "fit_probes": "probes",
    "generate": "generate",
    "human_reference": "geometry",
    "load_classifier": "gates",
    "load_labelled": "labelled",
    "load_model": "models",
    "load_negative_prompts": "prompts",
    "load_pairs": "prompts",
    "load_questions": "prompts",
    "load_unrelated": "prompts",
    "open_activations": "activations",
    "open_evaluation": "evaluation",
    "select_neurons": "neurons",
    "study": "evaluation",
}
_MODULES = ("evaluation", "figures", "panels")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*_HOME, *_MODULES])


class _Door(ModuleType):
    """Keeps `wb.generate` the function: importing workbench/generate.py would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
