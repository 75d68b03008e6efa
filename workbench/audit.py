"""Audit of a set of pairs by numbers: is the contrast the value, or words, length, mood, topic or polarity?

Every figure is read from the texts alone, without a model. What a word-based reader can tell is what a probe
may have learnt instead of the value; the bars are those the workbench's own natural set is held to.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from .errors import WorkbenchError
from .probes.folds import assign_folds, check_pairs, in_order
from .probes.words import tfidf_hits, word_classifier
from .values import VALUES, circular_step

BLOCK = ("person", "form")
SIDES = ("positive", "negative")
LEAK = re.compile(
    r"\b(?:self[- ]direct|stimulat|hedonis|achiev|(?:em)?power|(?:in)?secur|(?:non)?conform|tradition|benevol"
    r"|universal)\w*",
    re.IGNORECASE,
)
"""Names of the ten values and words made from them."""


class Bar(NamedTuple):
    """What a criterion is held to; low and high None: reported only."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        ends = [f"{sign} {end:g}" for sign, end in ((">=", self.low), ("<=", self.high)) if end is not None]
        return " and ".join(ends)


BARS: dict[str, Bar] = {
    "words alone tell the sides: mean over values": Bar(high=0.75),
    "words alone tell the sides: highest value": Bar(),
    "words of a value tell other values' sides": Bar(high=0.60),
    "words alone tell the value, from negatives": Bar(),
    "mood alone tells the sides": Bar(low=0.40, high=0.60),
    "length alone tells the sides": Bar(low=0.40, high=0.60),
    "longer side / shorter side, highest": Bar(high=1.25),
    "words shared within a pair: mean": Bar(low=0.45),
    "distinct word pairs on one side of a value, lowest": Bar(low=0.75),
    "distinct word pairs on one side of the set": Bar(),
    "distinct word pairs over all texts": Bar(),
    "likeness of two rows, highest": Bar(high=0.80),
    "texts that name a value": Bar(high=0),
    "blocks: smallest / largest": Bar(low=1),
    "domains: smallest / largest": Bar(low=0.5),
    "names: share of the commonest": Bar(high=0.05),
}
"""Criterion -> the bar it is held to."""


@dataclass(frozen=True)
class Audit:
    """What `audit_pairs` found.

    criteria: criterion, figure, low, high (95 % interval where there is one), bar, verdict ("holds", "fails",
    "reported", or "unknown" where the set lacks the column) and note.
    by_value: one row per value. by_block: one row per value, person and form, where the set has them.
    by_step: accuracy of a value's word classifier on other values' pairs, by circular step (0: its own, out of fold).
    overlap: words shared within each pair, Jaccard. near: the most alike rows. leaks: texts that name a value.
    """

    name: str
    criteria: pd.DataFrame
    by_value: pd.DataFrame
    by_block: pd.DataFrame
    by_step: pd.DataFrame
    overlap: pd.Series
    near: pd.DataFrame
    leaks: pd.DataFrame

    @property
    def failed(self) -> list[str]:
        return self.criteria.loc[self.criteria["verdict"] == "fails", "criterion"].tolist()

    def __repr__(self) -> str:
        told = ", ".join(self.failed) or "every bar holds"
        return f"Audit of {self.name}: {len(self.overlap)} pairs, {len(self.by_value)} values; fails: {told}".replace(
            "fails: every", "every")  # fmt: skip


def audit_pairs(pairs: pd.DataFrame, name: str = "pairs", folds: int = 5, seed: int = 0) -> Audit:
    """Audit a table of pairs (columns value, positive, negative; person, form and domain where there are).

    folds: of the word classifiers, pairs kept together. Raises WorkbenchError for what is no table of pairs.
    """
    pairs = check_pairs(pairs)
    return _Auditor(pairs, name, folds, seed).audit()


def compare_audits(audits: Sequence[Audit]) -> pd.DataFrame:
    """Criteria of several sets in one table: criterion, bar, then a figure and a verdict per set."""
    if len({audit.name for audit in audits}) < len(audits) or not audits:
        raise WorkbenchError("Audits were to be compared.", f"names {[audit.name for audit in audits]}",
                             "one or more audits of different names", "Pass name= to audit_pairs.")  # fmt: skip
    table = pd.DataFrame({"criterion": list(BARS), "bar": [str(bar) for bar in BARS.values()]})
    for audit in audits:
        of = audit.criteria.set_index("criterion")
        table[audit.name] = of["figure"].reindex(table["criterion"]).to_numpy()
        table[f"{audit.name}: verdict"] = of["verdict"].reindex(table["criterion"]).to_numpy()
    return table


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


class _Auditor:
    def __init__(self, pairs: pd.DataFrame, name: str, folds: int, seed: int):
        self.pairs, self.name = pairs, name
        self.values = in_order(pairs["value"])
        self.fold = assign_folds(pairs, self.values, folds, seed)[1]
        self.count = pairs[list(SIDES)].map(lambda text: len(words(text)))

    def audit(self) -> Audit:
        by_value = self._table(["value"])
        blocks = [column for column in BLOCK if column in self.pairs]
        by_block = self._table(["value", *blocks]) if blocks else pd.DataFrame()
        return Audit(
            self.name, self._criteria(), by_value, by_block, self._by_step, self._overlap, self._near, self._leaks
        )

    # -- one figure per text or pair --------------------------------------------------------------------

    @cached_property
    def _overlap(self) -> pd.Series:
        sides = [self.pairs[side].map(lambda text: set(words(text))) for side in SIDES]
        return pd.Series([len(a & b) / max(1, len(a | b)) for a, b in zip(*sides, strict=True)], name="overlap")

    @cached_property
    def _ratio(self) -> pd.Series:
        return self.count.max(axis=1) / self.count.min(axis=1).clip(lower=1)

    @cached_property
    def _hits(self) -> pd.DataFrame:
        """Whether words alone put each side right, by a classifier of the value's other pairs."""
        hits = pd.DataFrame(False, index=self.pairs.index, columns=list(SIDES))
        for value in self.values:
            own = self.pairs[self.pairs["value"] == value]
            y = np.repeat([True, False], len(own))
            fold = np.tile(self.fold[own.index], 2)
            hit = tfidf_hits([*own["positive"], *own["negative"]], y, fold)
            hits.loc[own.index] = hit.reshape(2, -1).T
        return hits

    @cached_property
    def _mood(self) -> pd.DataFrame:
        """Compound sentiment of each side, -1 to 1, by the VADER lexicon (Hutto and Gilbert 2014)."""
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        score = SentimentIntensityAnalyzer().polarity_scores
        return self.pairs[list(SIDES)].map(lambda text: score(text)["compound"])

    def _table(self, by: list[str]) -> pd.DataFrame:
        gap = self._mood["positive"] - self._mood["negative"]
        each = self.pairs[by].assign(
            pairs=1, words=self.count.mean(axis=1), ratio=self._ratio, overlap=self._overlap,
            accuracy=self._hits.mean(axis=1), mood_gap=gap,
        )  # fmt: skip
        table = each.groupby(by, sort=False).agg(
            pairs=("pairs", "sum"), words=("words", "mean"), highest_ratio=("ratio", "max"),
            overlap=("overlap", "mean"), accuracy=("accuracy", "mean"), mood_gap=("mood_gap", "mean"),
        )  # fmt: skip
        distinct = self.pairs.groupby(by, sort=False)["positive"].agg(_distinct)
        table = table.assign(distinct=distinct).reset_index()
        return table.sort_values("value", key=lambda v: v.map(self.values.index), kind="stable", ignore_index=True)

    # -- figures of the whole set -----------------------------------------------------------------------

    @cached_property
    def _by_step(self) -> pd.DataFrame:
        """Accuracy of V's word classifier on W's pairs, by circular step; 0 is its own value, out of fold."""
        rows = [(0, value, value, float(self._hits[self.pairs["value"] == value].to_numpy().mean()))
                for value in self.values]  # fmt: skip
        if set(self.values) <= set(VALUES):
            for value in self.values:
                own = self.pairs[self.pairs["value"] == value]
                model = word_classifier().fit([*own["positive"], *own["negative"]], np.repeat([True, False], len(own)))
                for other in self.values:
                    if other != value:
                        theirs = self.pairs[self.pairs["value"] == other]
                        right = [model.predict(theirs[side]) == (side == "positive") for side in SIDES]
                        rows.append((circular_step(value, other), value, other, float(np.mean(right))))
        return pd.DataFrame(rows, columns=["step", "value", "on", "accuracy"])

    def _topic_leak(self) -> tuple[float, int]:
        """Accuracy at telling which value from the negatives alone, out of fold."""
        if len(self.values) < 2:
            return np.nan, 0
        code = self.pairs["value"].map(self.values.index).to_numpy()
        return float(tfidf_hits(self.pairs["negative"].tolist(), code, self.fold).mean()), len(code)

    @cached_property
    def _near(self) -> pd.DataFrame:
        """The twenty most alike texts of different rows: cosine of TF-IDF over words and word pairs."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [*self.pairs["positive"], *self.pairs["negative"]]
        x = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
        alike = (x @ x.T).tocoo()
        n = len(self.pairs)
        across = (alike.row < alike.col) & (alike.row % n != alike.col % n)
        best = np.argsort(-alike.data * across, kind="stable")[:20]
        best = best[across[best]]
        side = lambda i: SIDES[i // n]  # noqa: E731
        rows = [(float(alike.data[k]), i % n, side(i), j % n, side(j), texts[i], texts[j])
                for k, i, j in zip(best, alike.row[best], alike.col[best], strict=True)]  # fmt: skip
        return pd.DataFrame(rows, columns=["likeness", "row", "side", "other_row", "other_side", "text", "other_text"])

    @cached_property
    def _leaks(self) -> pd.DataFrame:
        values = self.pairs["value"].tolist()
        rows = [(i, values[i], side, found[0], text)
                for side in SIDES for i, text in enumerate(self.pairs[side])
                if (found := LEAK.search(text))]  # fmt: skip
        return pd.DataFrame(rows, columns=["row", "value", "side", "word", "text"])

    def _names(self) -> Counter[str]:
        """In how many pairs each proper name stands: words always capitalised, also within a sentence."""
        texts = (self.pairs["positive"] + " " + self.pairs["negative"]).tolist()
        low = {word for text in texts for word in re.findall(r"\b[a-z]+\b", text)}
        within = {w for text in texts for w in re.findall(r"(?<=[a-z,;:] )[A-Z][a-zà-ÿ]+", text)}
        within = {word for word in within if word.lower() not in low}
        return Counter(w for text in texts for w in set(re.findall(r"\b[A-Z][a-zà-ÿ]+", text)) & within)

    def _criteria(self) -> pd.DataFrame:
        from scipy.stats import binomtest

        n = len(self.pairs)
        accuracy = self._hits.mean(axis=1).groupby(self.pairs["value"]).mean()
        others = self._by_step.query("step > 0")["accuracy"]
        topic, topics = self._topic_leak()
        gap = self._mood["positive"] - self._mood["negative"]
        mood = float((np.sign(gap) / 2 + 0.5).mean())
        longer = float((np.sign(self.count["positive"] - self.count["negative"]) / 2 + 0.5).mean())
        one_side = self.pairs.melt("value", list(SIDES), "side", "text").groupby(["value", "side"])["text"]
        distinct = one_side.agg(_distinct)
        near, leaks, names = self._near, self._leaks, self._names()
        texts = [*self.pairs["positive"], *self.pairs["negative"]]
        found: dict[str, tuple[float, int, str]] = {
            "words alone tell the sides: mean over values": (float(accuracy.mean()), 2 * n, "TF-IDF, out of fold"),
            "words alone tell the sides: highest value": (float(accuracy.max()), 0, str(accuracy.idxmax())),
            "words of a value tell other values' sides": (
                float(others.mean()) if len(others) else np.nan, 0, "above chance it is polarity, not the value"),
            "words alone tell the value, from negatives": (
                topic, topics, f"chance {1 / len(self.values):.2f}: the topics of a value"),
            "mood alone tells the sides": (mood, n, f"VADER, mean gap {gap.mean():+.3f}; ties count half"),
            "length alone tells the sides": (longer, n, "the positive is the longer one; ties count half"),
            "longer side / shorter side, highest": (float(self._ratio.max()), 0, "in words"),
            "words shared within a pair: mean": (float(self._overlap.mean()), 0, "Jaccard of the word sets"),
            "distinct word pairs on one side of a value, lowest": (
                float(distinct.min()), 0, f"distinct-2, {distinct.index[int(distinct.argmin())][0]}"),
            "distinct word pairs on one side of the set": (
                min(_distinct(self.pairs[side]) for side in SIDES), 0, "falls with the number of words in any English"),
            "distinct word pairs over all texts": (_distinct(texts), 0, "two sides of a pair share words on purpose"),
            "likeness of two rows, highest": (
                float(near["likeness"].max()) if len(near) else 0.0, 0, "TF-IDF cosine"),
            "texts that name a value": (float(len(leaks)), 0, ", ".join(leaks["word"].head(3))),
            "blocks: smallest / largest": self._evenness(BLOCK),
            "domains: smallest / largest": self._evenness(("domain",)),
            "names: share of the commonest": (
                names.most_common(1)[0][1] / n if names else 0.0, 0, f"{len(names)} names"),
        }  # fmt: skip
        rows = []
        for criterion, bar in BARS.items():
            figure, count, note = found[criterion]
            interval = (np.nan, np.nan)
            if count and np.isfinite(figure):
                told = binomtest(round(figure * count), count).proportion_ci(method="wilson")
                interval = (told.low, told.high)
            rows.append((criterion, figure, *interval, str(bar), _verdict(figure, bar), note))
        return pd.DataFrame(rows, columns=["criterion", "figure", "low", "high", "bar", "verdict", "note"])

    def _evenness(self, columns: Sequence[str]) -> tuple[float, int, str]:
        if missing := [column for column in columns if column not in self.pairs]:
            return np.nan, 0, f"no column {', '.join(missing)}"
        sizes = self.pairs.groupby(["value", *columns]).size().unstack(list(columns), fill_value=0)
        return float(sizes.to_numpy().min() / sizes.to_numpy().max()), 0, f"{sizes.shape[1]} for each value"


def _distinct(texts: Sequence[str] | pd.Series) -> float:
    """Distinct-2: distinct word pairs as a share of all (Li et al. 2016)."""
    grams = [gram for text in texts for gram in pairwise(words(text))]
    return len(set(grams)) / max(1, len(grams))


def _verdict(figure: float, bar: Bar) -> str:
    if not np.isfinite(figure):
        return "unknown"
    if bar == Bar():
        return "reported"
    above = bar.low is None or figure >= bar.low
    return "holds" if above and (bar.high is None or figure <= bar.high) else "fails"


__all__ = ["BARS", "Audit", "audit_pairs", "compare_audits"]
