"""Tables of judged answers, made from what the judge is to have said."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.values import VALUES


def answered(
    judged: Mapping[str, Any], subset: str = "own", values: tuple[str, ...] = VALUES, **columns: Any
) -> pd.DataFrame:
    """One row per answer. judged: method -> scores (seed, steered value, question, judged value) of the `values`, which
    are steered in this order. The questions are those of the steered value ("own"), or the same for all, about each of
    the ten in turn. columns: further ones, or others than the usual; a scalar or one entry per row.
    """
    rows = []
    for method, scores in judged.items():
        for seed, by_value in enumerate(np.asarray(scores, float)):
            for value, own in zip(values, by_value, strict=True):
                about = [value if subset == "own" else VALUES[q % 10] for q in range(len(own))]
                table = pd.DataFrame(own, columns=list(VALUES))
                table["about"], table["question"] = about, [f"{a} {q}?" for q, a in enumerate(about)]
                rows.append(table.assign(method=method, value=value, seed=seed))
    usual = {"set": subset, "prompt": "none", "temperature": 1.0, "answer": "yes", "note": "", "open": True,
             "tokens": 3, "fluent": 1.0}  # fmt: skip
    return pd.concat(rows, ignore_index=True).assign(**(usual | columns))


def drawn(p: Any, seeds: int, questions: int, draw: np.random.Generator) -> np.ndarray:
    """Scores 0 and 1 (seed, steered, question, judged) of probabilities, broadcast to (steered, question, judged)."""
    p = np.clip(np.asarray(p, float), 0, 1)
    return (draw.random((seeds, len(VALUES), questions, len(VALUES))) < p).astype(float)
