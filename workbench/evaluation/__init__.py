"""What steering did: judges, rates with their uncertainty, and the study of methods and values."""

from ..rates import newcombe as newcombe
from ..rates import wilson as wilson
from .agreement import agreement as agreement
from .answers import answer as answer
from .capability import unrelated_accuracy as unrelated_accuracy
from .comparison import compare as compare
from .comparison import non_inferior as non_inferior
from .comparison import rates as rates
from .judges import ExactJudge as ExactJudge
from .judges import HumanJudge as HumanJudge
from .judges import Judge as Judge
from .judges import judged as judged
from .leakage import at_matched as at_matched
from .leakage import leakage as leakage
from .lineup import Lineup as Lineup
from .results import Evaluation as Evaluation
from .results import open_evaluation as open_evaluation
from .study import evaluate as evaluate
from .study import study as study
from .tuning import Tuning as Tuning
from .tuning import tune as tune
