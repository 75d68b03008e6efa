"""Activations of pairs: held-out logits, blocks, resamples, random labels, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted import activations, two_classes
from sklearn.feature_extraction.text import TfidfVectorizer

from workbench.errors import WorkbenchError
from workbench.probes import METHODS, PairActivations
from workbench.probes.linear import Rows, cross_validated

MIXED = ["power", "security"] * 12  # the values take turns, so that no row lies where it would by luck


def some(n: int = 24, d: int = 40, apart: float = 1.0, layers: int = 1, values=None, **columns) -> PairActivations:
    """n pairs, a planted direction in each layer, a common offset."""
    sides = [two_classes(2 * n, d, offset=5, apart=apart, seed=layer)[0].reshape(2, n, d) for layer in range(layers)]
    return activations(*np.stack(sides, axis=1), values, **columns)


def rows_of(acts: PairActivations, value: str, layer: int = 0) -> Rows:
    """From the texts themselves."""
    own = acts.pairs[acts.pairs["value"] == value]
    X = acts.acts.sel(layer=layer).set_index(text="content").sel(text=[*own["positive"], *own["negative"]]).values
    return Rows(X, np.repeat([True, False], len(own)))


# -- fits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_examples_logit_comes_from_the_other_folds(method):
    acts = some(values=MIXED, layers=2, apart=0.5)
    probes = acts.fit(method, folds=3)
    for value, own in probes.examples.groupby("value"):
        by_text = acts.acts.sel(layer=1).set_index(text="content").sel(text=own["text"].tolist()).values
        w, held_out = cross_validated(by_text, own["positive"].to_numpy(), own["fold"].to_numpy(), method, 1.0)
        at = {"layer": 1, "example": own.index}
        found = probes.held_out.assign_coords(example=probes.examples.index).sel(at).values
        assert found == pytest.approx(held_out, rel=1e-3, abs=1e-3)
        assert probes.weight.sel(layer=1, value=value).values == pytest.approx(w.weight, rel=1e-3, abs=1e-4)
        named = acts.pairs.loc[own["pair"]]
        side = np.where(own["positive"], named["positive"], named["negative"])
        assert (side == own["text"].to_numpy()).all() and (named["value"] == value).all()
        assert (own.groupby("pair")["fold"].nunique() == 1).all() and sorted(set(own["fold"])) == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_one_value_at_one_layer_is_fitted_as_among_all(method):
    acts, fresh = some(values=MIXED, layers=2, apart=0.5), some(values=MIXED, layers=2, apart=0.5)
    probes = acts.fit(method, C=0.1, folds=3)
    own = probes.examples["value"] == "security"
    fold = probes.examples.loc[own, "fold"].to_numpy()
    weight, bias, held_out = fresh.fit_one("security", 1, fold, method, C=0.1)
    at = {"value": "security", "layer": 1}
    np.testing.assert_array_equal(weight, probes.weight.sel(at))
    assert np.float32(bias) == float(probes.bias.sel(at))
    np.testing.assert_array_equal(held_out, probes.held_out.sel(layer=1).values[own.to_numpy()])
    with pytest.raises(WorkbenchError, match="Probes with C=0 were asked for"):
        fresh.fit_one("security", 1, fold, method, C=0)


def test_a_refit_is_a_fit():
    acts, fresh = some(layers=3), some(layers=3)
    assert [acts.fit("lda", folds=folds).provenance["folds"] for folds in (5, 3)] == [5, 3]
    acts.fit("logistic"), acts.resample(1, n=2)
    again, first = acts.fit("pca", layers=[2, 0]), fresh.fit("pca")
    assert again.layers == [2, 0] and again.activations is acts
    for name in ("weight", "held_out"):
        xr.testing.assert_identical(getattr(again, name), getattr(first, name).sel(layer=[2, 0]))
    assert acts.fit(C=0.01).norms(0).item() < 0.9 * acts.fit(C=1.0).norms(0).item(), "a small C keeps w short"


def test_folds_of_a_column_are_kept():
    own = ["b", "a", "c", "b"] * 6
    probes = some(values=MIXED, fold=own).fit(folds="fold")
    assert probes.provenance["folds_by"] == "column 'fold'" and probes.provenance["folds"] == 3
    named = np.array(own)[probes.examples["pair"]]
    assert (pd.factorize(named, sort=True)[0] == probes.examples["fold"]).all()


# -- blocks --------------------------------------------------------------------------------------------------


def blocks(first: np.ndarray, second: np.ndarray, shift: float = 0.0, values=None, n: int = 40) -> PairActivations:
    """Blocks of n pairs each: in one the positives lie along `first`, in the other along `second` and beyond it."""
    noise = np.random.default_rng(0).normal(size=(2, 2 * n, len(first)))
    way = np.repeat([first, second], n, axis=0)
    beyond = np.repeat([0.0, shift], n)[:, None] * second
    form = np.repeat(["statement", "question"], n)
    return activations(noise[0] + way + beyond, noise[1] - way + beyond, values, form=form)


def test_blocks_that_share_a_direction_read_each_other_and_others_do_not():
    one, other = 4 * np.eye(30)[:2]
    values = ["power", "security"] * 40
    shared, apart = (blocks(one, second, values=values).generalise("form") for second in (one, other))
    assert shared.dims == ("value", "layer", "train", "test")
    assert shared["train"].values.tolist() == shared["test"].values.tolist() == ["statement", "question"]
    assert shared.notnull().all() and float(shared.min()) > 0.95
    for table in apart.sel(layer=0).values:
        assert np.diag(table).min() > 0.95 and abs(table[~np.eye(2, dtype=bool)] - 0.5).max() < 0.25


def test_train_and_test_are_no_one_and_the_same():
    """The second block reaches farther: its boundary, at 5, leaves both sides of the first, at -4 and 4, below."""
    one = 4 * np.eye(30)[0]
    far = activations(*(
        np.concatenate([np.tile(a * one, (40, 1)), np.tile(b * one, (40, 1))]) + 0.3 * rng.normal(size=(80, 30))
        for a, b, rng in ((1, 3, np.random.default_rng(0)), (-1, -0.5, np.random.default_rng(1)))
    ), form=np.repeat(["near", "far"], 40))  # fmt: skip
    table = far.generalise("form", "mean_difference").sel(value="power", layer=0)
    assert float(table.sel(train="near", test="far")) == 1 and float(table.sel(train="far", test="near")) == 0.5


def test_within_a_block_accuracy_is_out_of_fold():
    acts = activations(*np.random.default_rng(0).normal(size=(2, 60, 200)), form=np.repeat(["a", "b"], 30))
    found = acts.generalise("form").values
    assert abs(found - 0.5).max() < 0.25, "more dimensions than texts: in sample all would be right"


def test_a_value_that_a_block_lacks_is_no_number():
    one = 4 * np.eye(30)[0]
    values = ["power"] * 60 + ["security"] * 20
    table = blocks(one, one, values=values).generalise("form", folds=4).sel(layer=0)
    assert bool(table.sel(value="power").notnull().all())
    security = table.sel(value="security")
    assert float(security.sel(train="question", test="question")) > 0.9 and int(security.notnull().sum()) == 1


# -- resamples -----------------------------------------------------------------------------------------------


def drawn(found: xr.DataArray, differences: np.ndarray, of: float) -> np.ndarray:
    """How often each pair counts, read off vectors (.., d_model) that are means of `of` differences each."""
    counts = np.linalg.lstsq(differences.T, of * found.values.reshape(-1, found.sizes["d_model"]).T, rcond=None)[0].T
    assert np.allclose(counts, counts.round(), atol=1e-3)
    return counts.round().astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_a_resample_is_a_fit_on_repeated_pairs(method):
    acts = some(20, values=["power", "security"] * 10)
    simple, found = (acts.resample(0, n=6, method=m, splits=3) for m in ("mean_difference", method))
    assert found.draws == simple.draws, "whatever is fitted, the pairs drawn are the same"
    for value in acts.values:
        rows = rows_of(acts, value)
        m = len(rows.y) // 2
        apart = (rows.X[:m] - rows.X[m:]).astype(float)
        bootstrap = drawn(simple.bootstrap.sel(value=value), apart, m)
        assert (bootstrap.sum(1) == m).all() and (bootstrap == 0).any(1).all() and (bootstrap > 1).any(1).all()
        halves = [drawn(half, apart, m / 2) for half in simple.halves.sel(value=value)]
        assert (halves[0] + halves[1] == 1).all() and (halves[0].sum(1) == m // 2).all(), "disjoint and complete"
        assert len({tuple(row) for row in halves[0]}) == 3
        counts = [np.ones(m, int), *bootstrap, *halves[0], *halves[1]]
        own = found.bootstrap.sel(value=value), *found.halves.sel(value=value)
        vectors = [found.vectors.sel(value=value).values, *np.concatenate([part.values for part in own])]
        for count, vector in zip(counts, vectors, strict=True):
            X, both = rows_of(acts, value).X, np.tile(count, 2)
            again = Rows(np.repeat(X, both, axis=0), np.repeat(rows.y, both))
            exact = again.lift(again.fit(method, 1.0)).weight
            assert np.linalg.norm(vector - exact) < 1e-4 * np.linalg.norm(exact)


def test_the_halves_of_mean_differences_average_to_the_whole():
    found = some(24, values=MIXED, layers=2).resample(1, n=3, splits=4)
    mean = found.halves.mean("half").transpose("split", "value", "d_model")
    assert mean.values == pytest.approx(np.tile(found.vectors.values, (4, 1, 1)), abs=1e-4)
    assert found.bootstrap.dims == ("resample", "value", "d_model") and found.bootstrap.sizes["resample"] == 3
    assert found.halves.dims == ("half", "split", "value", "d_model") and found.halves.shape[:2] == (2, 4)


def test_an_odd_pair_out_is_in_one_half():
    acts = some(9)
    found, rows = acts.resample(0, n=2, splits=5), rows_of(acts, "power")
    apart = (rows.X[:9] - rows.X[9:]).astype(float)
    small, large = (drawn(found.halves.sel(value="power")[half], apart, of) for half, of in ((0, 4), (1, 5)))
    assert (small + large == 1).all() and (small.sum(1) == 4).all()


def test_the_seed_decides_the_draws():
    acts = some(12)
    one, same, other = (acts.resample(0, n=5, splits=2, seed=seed) for seed in (3, 3, 4))
    assert one.draws == same.draws != other.draws
    for name in ("bootstrap", "halves"):
        xr.testing.assert_identical(getattr(one, name), getattr(same, name))
        assert not getattr(one, name).equals(getattr(other, name))
    xr.testing.assert_identical(one.vectors, other.vectors)
    reworded = replace(acts, pairs=acts.pairs.iloc[::-1]).resample(0, n=5, splits=2, seed=3)
    assert reworded.draws != one.draws, "other pairs, or in another order: other draws"
    assert acts.resample(0, n=6, splits=2, seed=3).draws != one.draws


def test_two_layers_and_two_models_draw_alike():
    acts = some(12, layers=2)
    low, high = (acts.resample(layer, n=4, splits=2) for layer in (0, 1))
    assert low.draws == high.draws == PairActivations.of_words(acts.pairs).resample(0, n=4, splits=2).draws
    counts = []
    for layer, found in enumerate((low, high)):
        rows = rows_of(acts, "power", layer)
        counts.append(drawn(found.bootstrap.sel(value="power"), (rows.X[:12] - rows.X[12:]).astype(float), 12))
    assert (counts[0] == counts[1]).all()


def test_differences_are_positive_minus_negative():
    acts = some(24, values=MIXED)
    found = acts.resample(0, n=2, splits=1).differences
    assert found["value"].values.tolist() == MIXED
    texts = acts.acts.sel(layer=0).set_index(text="content")
    for k in (0, 7, 23):
        positive, negative = (str(found[side].values[k]) for side in ("positive", "negative"))
        assert (positive, negative) == (f"p{k} here", f"n{k} here")
        assert found.values[k] == pytest.approx((texts.sel(text=positive) - texts.sel(text=negative)).values, abs=1e-5)


# -- random labels, words ------------------------------------------------------------------------------------


def test_sides_at_random_leave_nothing_to_read():
    acts = some(40, apart=4.0)
    assert float(acts.fit().accuracy.mean()) > 0.99
    found = [acts.with_sides_at_random(seed) for seed in range(8)]
    assert 0.4 < np.mean([other.fit().accuracy for other in found]) < 0.6
    pairs = found[0].pairs
    swapped = pairs["positive"] != acts.pairs["positive"]
    assert 0 < swapped.sum() < 40 and (pairs["positive"][swapped] == acts.pairs["negative"][swapped]).all()
    assert (pairs["negative"][swapped] == acts.pairs["positive"][swapped]).all()
    assert found[0].pairs.equals(acts.with_sides_at_random(0).pairs) and not pairs.equals(found[1].pairs)


def test_values_at_random_keep_the_pairs():
    acts = some(24, values=MIXED)
    other = acts.with_values_at_random(1)
    assert other.pairs[["positive", "negative"]].equals(acts.pairs[["positive", "negative"]])
    assert sorted(other.pairs["value"]) == sorted(MIXED) and other.pairs["value"].tolist() != MIXED
    assert other.pairs.equals(acts.with_values_at_random(1).pairs)
    assert not other.pairs.equals(acts.with_values_at_random(2).pairs)


def test_of_words_reads_words_and_nothing_else():
    told = pd.DataFrame({"value": "power", "positive": [f"{k} commands all" for k in range(20)],
                         "negative": [f"{k} obeys all" for k in range(20)]})  # fmt: skip
    words = PairActivations.of_words(told)
    assert words.acts.sizes["text"] == 40
    assert words.layers == [0] and words.provenance["model"] == "TF-IDF"
    assert words.fit("mean_difference").accuracy.item() == 1
    untold = told.assign(negative=[f"{k}: commands, all?" for k in range(20)])  # the same words
    assert PairActivations.of_words(untold).fit().accuracy.item() == 0.5
    table = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b").fit(words.acts["content"].values.tolist())
    assert words.acts.values[0] == pytest.approx(table.transform(words.acts["content"].values).toarray(), abs=1e-6)


# -- refused -------------------------------------------------------------------------------------------------


def refused(message: str):
    return pytest.raises(WorkbenchError, match=f"(?s){message}")


def test_pairs_without_a_second_class():
    acts = some(8)
    for nothing in ("", " ", None):
        with refused("Pairs of two different texts.*empty or missing text in row 0"):
            replace(acts, pairs=acts.pairs.assign(negative=nothing))


def test_activations_that_tell_nothing():
    X = np.random.default_rng(0).normal(size=(2, 2, 8, 5))
    for wrong, message in ((np.nan, "NaN or infinity at layer 1"), (np.inf, "NaN or infinity at layer 1")):
        broken = X.copy()
        broken[1, 1, 3, 2] = wrong
        with refused(message):
            activations(*np.moveaxis(broken, 1, 0)).fit()
    X[0] = 3.0
    with refused("the same activation for every text at layer 0.*which token is read"):
        activations(*np.moveaxis(X, 1, 0)).fit()


def test_activations_of_other_texts_or_axes():
    acts = some(8)
    with refused("no activation of 'p5 here' or its negative"):
        replace(acts, acts=acts.acts.isel(text=[k for k in range(16) if k != 13]))
    with refused("dims .*'place'.*the texts along text as `content`"):
        replace(acts, acts=acts.acts.rename(text="place"))
    with refused("the texts along text as `content`"):
        replace(acts, acts=acts.acts.drop_vars("content"))


def test_too_few_pairs_for_the_folds():
    acts = some(24, values=["power"] * 20 + ["security"] * 4)
    with refused("5 folds were asked for.*4 independent pairs of security.*smaller folds="):
        acts.fit()
    assert acts.fit(folds=4).provenance["folds"] == 4
    twice = [f"p{k // 2} here" for k in range(8)]  # four positives, each in two pairs
    pairs = pd.DataFrame({"value": "power", "positive": twice, "negative": [f"n{k} here" for k in range(8)]})
    with refused("5 folds were asked for.*4 independent pairs of power"):
        replace(some(8), pairs=pairs).fit()


def test_folds_of_a_column_that_cannot_be_kept():
    acts = some(8)
    for column, message in (
        (None, "The folds of the column 'fold'.*no such column"),
        ([0, 1, None, 0, 1, 0, 1, 0], "pairs without a fold"),
        ([2] * 8, "all pairs of power in one fold.*two folds or more for every value"),
    ):
        pairs = acts.pairs if column is None else acts.pairs.assign(fold=column)
        with refused(message):
            replace(acts, pairs=pairs).fit(folds="fold")
    for side, again in (("positive", "p0 here"), ("negative", "n0 here"), ("positive", "n0 here")):
        fold = np.array([0, 1] * 4)
        double = acts.pairs.assign(fold=fold)
        double.loc[7, side] = again  # one text, learnt in one fold and asked in another
        with refused(f"the text {re.escape(repr(again))} of power in two folds.*Keep equal texts in one fold"):
            replace(acts, pairs=double).fit(folds="fold")
    values = some(8, values=["power", "security"] * 4, fold=[0, 2, 1, 2] * 2)
    with refused("all pairs of security in one fold"):
        values.fit(folds="fold")


def test_options_that_do_not_exist():
    acts = some(8, form=["one"] * 8)
    for wrong in (0, -1.0, float("nan")):
        with refused(f"Probes with C={wrong}.*above 0"):
            acts.fit(C=wrong)
        with refused(f"Probes with C={wrong}.*above 0"):
            acts.resample(0, C=wrong)
    for call in (acts.fit, lambda name: acts.resample(0, method=name)):
        with refused("Probes by 'svm'.*'logistic', 'mean_difference', 'lda', 'pca'"):
            call("svm")
    with refused(r"layers \[3\] were asked for.*layers 0"):
        acts.fit(layers=[0, 3])
    with refused("Generalisation across 'person'.*columns value, positive, negative, form.*two blocks"):
        acts.generalise("person")
    with refused("only 'one' in it"):
        acts.generalise("form")
    for settings in ({"layer": 3}, {"layer": 0, "n": 1}, {"layer": 0, "splits": 0}):
        with refused("resamples and .* splits at layer .* were asked for.*layers 0, 2 resamples and 1 split"):
            acts.resample(**settings)
    with refused("3 pairs of power.*4 or more"):
        some(3).resample(0)


def test_a_text_in_two_blocks_or_twice_among_the_activations():
    acts = some(8, form=["one", "two"] * 4)
    double = acts.pairs.copy()
    double.loc[1, "positive"] = double.loc[0, "positive"]
    with refused(f"the text {re.escape(repr(double.loc[0, 'positive']))} of power in two blocks.*Keep equal texts"):
        replace(acts, pairs=double).generalise("form")
    text = str(acts.acts["content"].values[0])
    twice = acts.acts.assign_coords(content=("text", [text, text, *acts.acts["content"].values[2:]]))
    with refused(f"the text {re.escape(repr(text))} twice"):
        replace(acts, acts=twice)
