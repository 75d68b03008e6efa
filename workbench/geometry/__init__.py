"""Do value vectors lie on Schwartz's circle? Circumplex statistics with exact nulls.

Everything starts from one matrix of cosines, centred by default: the mean of the value vectors is subtracted
first, as people are centred on their own mean before their ratings are correlated. The null permutes the
labels. Of ten values it is enumerated, not sampled: 10!/20 = 181,440 distinct orders of ten equal steps, 10!/4 =
907,200 of nine wedges, 10! = 3,628,800 labellings where the better of several circles is chosen. Of the nineteen
it is Monte Carlo. It says "not exchangeable" and nothing about why: words alone make circles too, so a lexical
reference belongs beside every fit (`CircumplexFit.beyond`).

Sources: correspondence index, Hubert and Arabie 1987, Tracey 1997 (RTHOR); Fisher and gap test, Acton and
Revelle 2004; classical MDS, Torgerson 1952; SMACOF, de Leeuw 1977; label permutation of a matrix correlation,
Mantel 1967; congruence, Tucker 1951; silhouettes, Rousseeuw 1987.
"""

from .comparison import Comparison
from .fit import CircumplexFit
from .labellings import Circle
from .making import circumplex_fit, layer_scan
from .maps import CosineProfile, Scaling, Silhouettes, cosine_profile, planted_axis_map
from .similarity import HUMAN_REFERENCES, cosines, human_reference

__all__ = [
    "HUMAN_REFERENCES", "Circle", "CircumplexFit", "Comparison", "CosineProfile", "Scaling", "Silhouettes",
    "circumplex_fit", "cosine_profile", "cosines", "human_reference", "layer_scan", "planted_axis_map",
]  # fmt: skip
