"""Fits of the circle that are found in small pieces, so that a kernel can do other things in between."""

from collections.abc import Generator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ...geometry import Circle, CircumplexFit
from ...geometry.labellings import BLOCK, STATISTICS, distinct_labellings, random_labellings
from ...geometry.resampling import split_half
from ...geometry.similarity import checked, resampled_matrices
from ...probes import PairActivations
from ...probes.pairs import Resampled


class KeptFit(CircumplexFit):
    """A fit that finds each of its nulls block by block, and keeps it."""

    @classmethod
    def of(cls, fit: CircumplexFit, **changed: Any) -> "KeptFit":
        held = {field.name: getattr(fit, field.name) for field in fields(fit)}
        raw = fit.raw if fit.raw is None or isinstance(fit.raw, cls) else cls.of(fit.raw)
        return cls(**{**held, "raw": raw, **changed})

    @cached_property
    def _blocks(self) -> dict[str, list[np.ndarray]]:
        return {}

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for found in self._blocks.values() for block in found)

    def has(self, statistic: str) -> bool:
        """Is the null of a statistic there?"""
        return len(self._blocks.get(statistic, ())) == len(self._spans)

    def find(self, statistic: str) -> None:
        """The next block of it."""
        found, (labels, circle) = self._blocks.setdefault(statistic, []), self._labelled
        start, end = self._spans[len(found)]
        found.append(STATISTICS[statistic](self.similarity.values[None], circle, labels[:, start:end])[0])

    def null_of(self, statistic: str) -> np.ndarray:
        if statistic not in STATISTICS:
            return super().null_of(statistic)  # which says what is wrong
        while not self.has(statistic):
            self.find(statistic)
        return np.concatenate(self._blocks[statistic])

    @property
    def null(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.null_of("ci")

    def forget(self) -> None:
        self._blocks.clear()

    def resampled_by(self, found: "Resamples") -> "KeptFit":
        """The same fit with what resampled pairs of texts say of it."""
        parts = [dict(zip(("matrices", "mirrored"), pair, strict=True)) for pair in (found.centred, found.raw)]
        common: dict[str, Any] = {"reliability": found.reliability, "resampled": found.resampled}
        raw = None if self.raw is None else KeptFit.of(self.raw, **parts[1], **common)
        again = KeptFit.of(self, raw=raw, **parts[0], **common)
        for new, old in ((again, self), (raw, self.raw)):
            if new is not None and isinstance(old, KeptFit):
                vars(new)["_blocks"] = old._blocks  # a null does not depend on resamples
        return again

    @property
    def _labelled(self) -> tuple[np.ndarray, Circle]:
        """All labellings, and the circle that they relabel: the set of orders is the same for every order."""
        circle, n = self.circle, len(self.circle.names)
        if not self.exact:
            return random_labellings(n, self.labellings, self.seed), circle
        return distinct_labellings(circle.layout, n), Circle(circle.layout, circle.names)

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        n = len(self.circle.names)
        size = BLOCK * 45 // (n * (n - 1) // 2)
        total = self._labelled[0].shape[1]
        return [*pairwise([*range(0, total, size), total])]


class Resamples(NamedTuple):
    """What resampled pairs of texts say of the vectors of one layer: (matrices, mirrored) of `CircumplexFit`."""

    centred: tuple[np.ndarray, np.ndarray]
    raw: tuple[np.ndarray, np.ndarray]
    reliability: pd.DataFrame
    resampled: Resampled


def resampled_in_steps(
    pairs: PairActivations, names: Sequence[str], layer: int, n: int, method: str, C: float, seed: int,
    of: str = "",
) -> Generator[str, None, Resamples]:  # fmt: skip
    """`PairActivations.resample` and the cosines of it, step by step: each yields how far it is, of what."""
    steps = pairs.resampling(layer, n, method, C, seed)
    while True:
        try:
            value, done = next(steps)
        except StopIteration as end:
            drawn: Resampled = end.value
            break
        yield f"{of}{value} ({pairs.values.index(value) + 1} of {len(pairs.values)} values), {done:,} fits"
    fitted, sides = checked(drawn.vectors, names), []
    for centred in (True, False):
        parts = []
        for start in range(0, n, 50):
            yield "their cosines"
            parts.append(resampled_matrices(drawn.bootstrap[start : start + 50], fitted, centred, names))
        matrices, mirrored = np.concatenate(parts, axis=1)
        sides.append((matrices, mirrored))
    lean = replace(drawn, bootstrap=drawn.bootstrap[:0])  # a gigabyte in large models, and needed no more
    return Resamples(sides[0], sides[1], split_half(drawn.halves, names), lean)
