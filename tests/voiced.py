"""A model whose voice is a function of the test's, for evaluations that need no transformer."""

import pandas as pd

from workbench.evaluation import answers
from workbench.steering.base import Base


class Voice(Base):
    """Stands for a method of a given strength: what it makes the model say, the test decides."""

    def __init__(self, value="", strength=0.0):
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "strength", strength)

    def pack(self):
        return {}, {"method": "Voice", "value": self.value, "strength": self.strength}


class Foreign:
    """As much of a model as an evaluation asks for where its voice is replaced."""

    world, name, fingerprint, context, active = None, "foreign", "f", 512, ()
    provenance = {"model": "foreign", "template": ""}

    def encode(self, texts, **options):
        return [text.split() for text in texts]

    def instruct(self, value, level):
        return f"{level} {value}"


def give_voice(monkeypatch, speak):
    """Answers come from speak(model, prompts, steer=None, **decoding) -> list of texts."""

    def generate(model, prompts, steer=None, return_trace=False, kl=False, **decoding):
        return speak(model, prompts, steer=steer, **decoding), pd.DataFrame()

    monkeypatch.setattr(answers, "generate", generate)
