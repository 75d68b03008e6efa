"""Value probes: one linear reader of each value at each layer, and how honestly it reads.

**Rule.** With e the residual stream at a text's last token, logit_V(e) = w.e + b and P_V(e) = sigmoid(w.e +
b).

- `logistic`: w, b minimise |w|^2 / 2 + C sum_i log(1 + exp(-y_i (w.e_i + b))), y = 1 on positives and -1 on
  negatives: scikit-learn's L2 logistic regression (b not penalised) on **raw** residuals. The published
  recipe does not standardise features, and neither does this: coordinates of large variance count for more
  (Jin et al. 2025, C = 1).
- `mean_difference`: w = mean of positives - mean of negatives, raw norm kept, b puts 0 midway (Rimsky et al.
  2024, CAA).
- `lda`: w = S^-1 (mean difference), S the within-class covariance shrunk as Ledoit and Wolf (2004) find best.
- `pca`: the first principal axis of the pairs' differences (Zou et al. 2023, RepE), as long as the mean difference
  along it.

**Honesty.** Accuracy is out of fold: a pair never straddles folds, nor does a text, nor a behaviour where the
pairs name them. Beside it stand TF-IDF on the same folds and V's probe on the other values' pairs
(`transfer`): a probe that reads "affirmed or denied" instead of a value does well on both. `probe_controls` adds
labels at random, a task that only memory solves, and the same architecture before any training.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..models import Model
from .controls import probe_controls
from .fitted import TAIL, Layers, Probes
from .linear import METHODS
from .pairs import PairActivations, Resampled, check_method

__all__ = ["METHODS", "TAIL", "Layers", "PairActivations", "Probes", "Resampled", "fit_probes", "probe_controls"]


def fit_probes(
    model: Model,
    pairs: pd.DataFrame,
    method: str = "logistic",
    layers: Iterable[int] | None = None,
    folds: Any = 5,
    C: float = 1.0,
    seed: int = 0,
    progress: bool = False,
    store: Any = None,
) -> Probes:
    """Fit a probe per value and layer on pairs of texts (columns value, positive, negative).

    method: one of `METHODS`. layers: block indices, None for all. C: inverse L2 penalty of "logistic".
    folds, seed: how accuracy is cross-validated, the probes themselves are fitted on all pairs; folds may be the name
        of a column that holds each pair's fold. store: where the activations are kept for the next fit (see `capture`).

    The result's `activations.fit(...)` fits again on the same activations. Raises WorkbenchError for malformed pairs,
    unknown methods, activations that are all alike, and values with too few independent pairs for the folds.
    """
    check_method(method, C)
    return PairActivations.capture(model, pairs, layers, store, progress).fit(method, C, folds, seed)
