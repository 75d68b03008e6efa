"""Controls tell what is there without a value: chance, memory of words, the bare architecture."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted import activations

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.probes import METHODS, PairActivations, fit_probes, probe_controls

WORDS = ("town", "forest", "May", "house", "rain", "winter")


def some(words=WORDS, readable: float = 4.0, n: int = 30, values=None, seed: int = 0) -> PairActivations:
    """n pairs whose value is read with ease, and whose texts' last words are as readable as is said."""
    rng = np.random.default_rng(seed)
    last = [[words[k] for k in rng.integers(0, len(words), n)] for _ in (0, 1)]
    planted = dict(zip(sorted(set(words)), rng.normal(size=(len(set(words)), 40)), strict=True))
    positive, negative = (
        rng.normal(size=(n, 40)) + readable * np.stack([planted[word] for word in own]) + 4 * way
        for own, way in zip(last, np.array([[1], [-1]]) * np.eye(40)[0], strict=True)
    )
    texts = {side: [f"{side} {k} in the {word}." for k, word in enumerate(own)]
             for side, own in zip(("positive", "negative"), last, strict=True)}  # fmt: skip
    return activations(positive, negative, values, **texts)


def controls(acts: PairActivations, **settings) -> xr.DataArray:
    """Without twins no model is asked."""
    return probe_controls(None, acts.pairs, activations=acts, **{"twins": 0, "draws": 6, **settings})


@pytest.mark.parametrize("method", METHODS)
def test_the_control_task_is_memory_of_last_words(method):
    readable, not_readable = (
        controls(some(readable=strength), method=method).sel(control="control task") for strength in (4.0, 0.0)
    )
    assert float(not_readable.mean()) == pytest.approx(0.5, abs=0.1)
    low = 0.9 if method != "pca" else 0.6  # PCA is no reader of classes whose rows come in no pairs
    assert float(readable.mean()) > low
    assert len(np.unique(not_readable)) > 1, "each draw another coin"


def reworded(acts: PairActivations, own) -> PairActivations:
    """The same activations of texts that own(k, text) makes of the k-th."""
    content = acts.acts["content"].values.tolist()
    new = {text: own(k, text) for k, text in enumerate(content)}
    pairs = acts.pairs.assign(**{side: acts.pairs[side].map(new) for side in ("positive", "negative")})
    return PairActivations(acts.acts.assign_coords(content=("text", list(new.values()))), pairs, acts.provenance)


def test_where_no_last_word_recurs_there_is_nothing_to_remember():
    alone = reworded(some(), lambda k, text: f"{text} w{k}.")  # the words before are readable as ever
    found = controls(alone, draws=12).sel(control="control task")
    assert float(found.mean()) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("odd", [0, 1])
def test_one_last_word_for_all_is_no_task(odd):
    """Nor is one text that ends otherwise: whoever names the larger class would seem to remember."""
    acts = reworded(some(words=("town",)), lambda k, text: text.replace("town", "May") if k < odd else text)
    assert (controls(acts, draws=2).sel(control="control task") == 0.5).all()


def test_a_rare_word_makes_no_high_rate():
    words = ("town",) * 9 + ("May",)
    sets = [some(words, readable=0.0, n=60, seed=seed) for seed in range(8)]
    found = [controls(acts, method="mean_difference", draws=2).sel(control="control task").mean() for acts in sets]
    assert np.mean(found) == pytest.approx(0.5, abs=0.1), "not .9, the share of the larger class"


def test_random_labels_are_read_at_chance_where_the_value_is_read():
    acts = some(values=["power", "security"] * 15, readable=1.0)
    assert float(acts.fit().accuracy.min()) > 0.95
    found = controls(acts, draws=10)
    labels = found.sel(control="random labels")
    assert float(labels.mean()) == pytest.approx(0.5, abs=0.08) and len(np.unique(labels)) > 5
    assert found["value"].values.tolist() == ["power", "security"] and found.attrs["model"] == "planted"
    assert found.sel(control="random weights").isnull().all()


def test_random_weights_are_the_architecture_before_training(tiny_model):
    model = tiny_model()
    pairs = pd.DataFrame([
        {"value": value, "positive": f"{who} seeks {value}", "negative": f"{who} shuns {value}"}
        for value in ("power", "security") for who in ("Mira", "he", "she", "they", "we", "you")
    ])  # fmt: skip
    found = probe_controls(model, pairs, draws=1, twins=2, folds=3, seed=4, layers=[0, 2])
    assert found.dims == ("control", "draw", "value", "layer") and found.shape == (3, 2, 2, 2)
    assert found["layer"].values.tolist() == [0, 2]
    for draw in (0, 1):
        exact = fit_probes(model.random_twin(4 + draw), pairs, layers=[0, 2], folds=3, seed=4).accuracy
        assert np.array_equal(found.sel(control="random weights", draw=draw), exact)
    assert found.sel(draw=0).notnull().all() and found.sel(draw=1, control="random labels").isnull().all()
    assert found.sel(draw=1, control="control task").isnull().all()


def test_activations_are_captured_once_and_must_be_of_these_pairs(tiny_model, monkeypatch):
    model = tiny_model()
    acts = some(values=["power", "security"] * 15)
    assert controls(acts, seed=1).equals(controls(acts, seed=1)) and not controls(acts).equals(controls(acts, seed=1))
    own = PairActivations.capture(model, acts.pairs)
    seen = []
    monkeypatch.setattr("workbench.probes.pairs.capture", lambda m, *a, **k: seen.append(m.name) or capture(m, *a, **k))
    given = probe_controls(model, acts.pairs, activations=own, draws=2, twins=1, layers=[1])
    assert seen == ["llama, random weights 0"]
    xr.testing.assert_equal(given, probe_controls(model, acts.pairs, draws=2, twins=1, layers=[1]))
    with pytest.raises(WorkbenchError, match="activations of other pairs"):
        probe_controls(model, acts.pairs.iloc[1:], activations=own)
    with pytest.raises(WorkbenchError, match="Activations of llama were to be used with qwen2"):
        probe_controls(tiny_model("qwen2"), acts.pairs, activations=own)
