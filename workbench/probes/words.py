"""What words alone tell: the lexical reference of every probe."""

from collections.abc import Sequence

import numpy as np


def tfidf_hits(texts: Sequence[str], y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Which texts words alone (unigrams and bigrams, logistic) put on the right side, each from the other folds."""
    hit, everything = np.zeros(len(y), bool), np.array(texts, dtype=object)
    for k in np.unique(fold):
        words = word_classifier().fit(everything[fold != k], y[fold != k])
        hit[fold == k] = words.predict(everything[fold == k]) == y[fold == k]
    return hit


def word_classifier():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(word_counts(), LogisticRegression())


def word_counts():
    """TF-IDF of unigrams and bigrams."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
