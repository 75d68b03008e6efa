"""What steering did: judges, rates with their uncertainty, and the sweep over methods and values."""

from ..rates import newcombe as newcombe
from ..rates import wilson as wilson
from .agreement import agreement as agreement
from .judges import ExactJudge as ExactJudge
from .judges import Judge as Judge
from .sweep import answer as answer
from .sweep import evaluate as evaluate
from .sweep import score as score
from .sweep import unrelated_accuracy as unrelated_accuracy
from .tuning import Tuning as Tuning
from .tuning import tune as tune
