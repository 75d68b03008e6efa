"""Probes: planted truths, scikit-learn's optimum, folds that keep together what belongs together."""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted import probes_of
from sklearn.linear_model import LogisticRegression

from workbench.errors import WorkbenchError
from workbench.probes import METHODS, Probes, fit_probes
from workbench.probes.folds import assign_folds, check_pairs, linked, spread
from workbench.values import VALUES

SUBJECTS = [f"{who} in {where}" for who in ("Mira", "he", "she", "they") for where in ("town", "the forest", "May")]


def some_pairs(values=VALUES[:3]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"value": v, "positive": f"{s} {v}.", "negative": f"{s} {values[k - 1]}.", "behaviour": f"{v} {n % 6}"}
            for k, v in enumerate(values)
            for n, s in enumerate(SUBJECTS)
        ]
    )


@pytest.fixture
def planted(monkeypatch, tiny_model):
    """Function: (pairs, directions, noise) -> a model whose residuals at layer l hold planted value
    directions.

    A text's residual is the sum of the directions of the values it names, scaled by the layer, plus noise.
    """
    model = tiny_model()

    def plant(directions: dict[str, np.ndarray], noise: float, growth=(0.0, 1.0, 1.0)):
        def capture(_model, texts, layers=None, **_):
            wanted = range(len(growth)) if layers is None else layers
            out = np.stack([[_read(t, directions, noise, growth[layer]) for t in texts] for layer in wanted])
            return xr.DataArray(
                out.astype(np.float32),
                dims=("layer", "text", "d_model"),
                coords={"layer": list(wanted)},
                attrs=model.provenance,
            )

        for home in ("pairs", "fitted"):
            monkeypatch.setattr(f"workbench.probes.{home}.capture", capture)
        return model

    return plant


def _read(text, directions, noise, growth):
    rng = np.random.default_rng(crc32(text.encode()))
    held = sum((d for value, d in directions.items() if f" {value}" in text), np.zeros(24))
    return growth * held + noise * rng.normal(size=24) + 3.0  # a large common part, as real residuals have


def directions(values, seed=0):
    rng = np.random.default_rng(seed)
    return {v: rng.normal(size=24) for v in values}


# -- the fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_direction_is_found(method, planted):
    values = VALUES[:3]
    held = directions(values)
    model = planted(held, noise=0.3)
    probes = fit_probes(model, some_pairs(values), method, folds=3)
    assert probes.accuracy.sel(layer=1).min() > 0.95
    assert probes.accuracy.sel(layer=0).mean() < 0.75, "nothing is planted at layer 0"
    for k, v in enumerate(values):  # positives name v, negatives the value before it
        truth = held[v] - held[values[k - 1]]
        found = probes.vectors(1).sel(value=v).values
        assert found @ truth / np.linalg.norm(truth) > 0.9
        if method == "mean_difference":
            assert probes.norms(1).sel(value=v) == pytest.approx(np.linalg.norm(truth), rel=0.2)


def test_mean_difference_is_the_raw_difference_of_means(tiny_model):
    from workbench.activations import capture

    model, pairs = tiny_model(), some_pairs()
    probes = fit_probes(model, pairs, "mean_difference", layers=[2, 1], folds=3)
    own = pairs[pairs["value"] == VALUES[1]]
    positive, negative = (capture(model, own[c], layers=[1]).values[0].mean(0) for c in ("positive", "negative"))
    where = {"value": VALUES[1], "layer": 1}
    assert probes.weight.sel(where).values == pytest.approx(positive - negative, abs=1e-5)
    middle = xr.DataArray((positive + negative) / 2, dims="d_model", coords={"layer": 1})
    assert float(probes.logit(middle).sel(value=VALUES[1])) == pytest.approx(0, abs=1e-3)


def test_the_logit_is_that_of_the_raw_residual(tiny_model):
    from workbench.activations import capture

    model, pairs = tiny_model(), some_pairs()
    probes = fit_probes(model, pairs, folds=3)
    own = pairs[pairs["value"] == VALUES[0]]
    acts = capture(model, [*own["positive"], *own["negative"]])
    y = np.repeat([1, 0], len(own))
    exact = LogisticRegression(C=1, solver="newton-cholesky", tol=1e-12).fit(acts.values[1].astype(float), y)
    p = probes.probability(acts)
    assert set(p.dims) == {"value", "layer", "text"}
    ours = p.sel(value=VALUES[0], layer=1).values
    assert ours == pytest.approx(exact.predict_proba(acts.values[1].astype(float))[:, 1], abs=1e-4)
    assert probes.logit(acts.sel(layer=1)).sel(value=VALUES[0]).values == pytest.approx(
        np.log(ours / (1 - ours)), abs=1e-2
    )


# -- honesty -------------------------------------------------------------------------------------------------


def test_labels_at_random_are_read_at_chance(planted):
    """A probe remembers the texts it saw, and so do words; what counts is what they say of others."""
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        [{"value": v, "positive": f"{rng.random()}", "negative": f"{rng.random()}"} for v in VALUES for _ in range(40)]
    )
    probes = fit_probes(planted({}, noise=1.0), pairs)
    assert 0.4 < float(probes.accuracy.mean()) < 0.6 and 0.4 < float(probes.auroc.mean()) < 0.6
    assert 0.4 < float(probes.tfidf.mean()) < 0.6
    own = np.diag(probes.transfer(1).values)
    assert own == pytest.approx(probes.accuracy.sel(layer=1).values), "own pairs count out of fold here too"
    low, high = probes.intervals.sel(bound="low"), probes.intervals.sel(bound="high")
    assert bool(((low < probes.accuracy) & (probes.accuracy < high)).all())
    assert float((high - low).mean()) == pytest.approx(0.21, abs=0.02)  # Wilson, 80 texts, p about .5


def test_a_behaviour_never_straddles_folds(planted):
    """Each behaviour has a direction of its own: whoever saw it in training reads it, and nobody else can."""
    rng = np.random.default_rng(1)
    behaviours = [f"{kind} b{n:02d}" for n in range(10) for kind in ("does", "shuns")]
    held = {name: 4 * rng.normal(size=24) for name in behaviours}
    rows = [
        {
            "value": "power",
            "positive": f"{s} {behaviours[2 * n]}",
            "negative": f"{s} {behaviours[2 * n + 1]}",
            "behaviour": f"b{n:02d}",
        }
        for n in range(10)
        for s in SUBJECTS[:8]
    ]
    model = planted(held, noise=0.2)
    honest = fit_probes(model, pd.DataFrame(rows), folds=5)
    leaky = fit_probes(model, pd.DataFrame(rows).drop(columns="behaviour"), folds=5)
    assert honest.provenance["folds_by"] == "texts and both behaviours" and leaky.provenance["folds_by"] == "texts"
    assert leaky.accuracy.sel(layer=1).item() > 0.95 and honest.accuracy.sel(layer=1).item() < 0.75


def test_folds_keep_together_what_is_linked_through_others():
    table = pd.DataFrame({"positive": list("abcd"), "negative": list("efga"), "behaviour": ["x", "y", "y", None]})
    assert linked(table, ["positive", "negative"]).tolist() == [0, 1, 2, 0], "a text is a text on either side"
    assert linked(table, ["positive", "negative", "behaviour"]).tolist() == [0, 1, 1, 0]
    groups = np.repeat(np.arange(12), [5, 1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2])
    fold = spread(groups, 4, seed=0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(12)) and np.bincount(fold).tolist() == [5, 5, 5, 5]
    assert (fold == spread(groups, 4, seed=0)).all() and (fold != spread(groups, 4, seed=1)).any()


def test_the_strictest_grouping_that_works_is_taken():
    pairs = check_pairs(some_pairs(VALUES[:2]))
    pairs["behaviour_positive"], pairs["behaviour_negative"] = pairs["behaviour"], "shared by all"
    grouping, fold = assign_folds(pairs, list(VALUES[:2]), 3, 0)
    assert grouping == "texts and behaviour", "one component of behaviours cannot be split"
    for _, rows in pairs.assign(fold=fold).groupby(["value", "behaviour"]):
        assert rows["fold"].nunique() == 1
    pairs["behaviour"] = "one"
    assert assign_folds(pairs, list(VALUES[:2]), 3, 0)[0] == "texts"
    with pytest.raises(WorkbenchError, match="12 independent pairs of self-direction"):
        assign_folds(pairs, list(VALUES[:2]), 13, 0)


def test_transfer_tells_a_value_probe_from_a_polarity_probe(planted):
    values = VALUES
    circle = {
        v: 2 * np.r_[np.cos(t), np.sin(t), np.zeros(22)]
        for v, t in zip(values, np.arange(10) * 0.2 * np.pi, strict=True)
    }
    opposed = pd.DataFrame(
        [
            {"value": v, "positive": f"{s} {v}", "negative": f"{s} {values[(k + 5) % 10]}"}
            for k, v in enumerate(values)
            for s in SUBJECTS
        ]
    )
    probes = fit_probes(planted(circle, noise=0.3), opposed, folds=3)
    steps = probes.transfer_by_step(1).groupby("step")["accuracy"].mean()
    assert steps[0] > 0.9 and steps[5] < 0.1 and steps.is_monotonic_decreasing
    table = probes.transfer(1)
    assert table.dims == ("probe", "pairs")
    assert np.diag(table.values) == pytest.approx(probes.accuracy.sel(layer=1).values), "own pairs: out of fold"
    polarity = planted({"yes": np.ones(24)}, noise=0.3)
    flipped = pd.DataFrame(
        [{"value": v, "positive": f"{s} yes {v}", "negative": f"{s} no {v}"} for v in values for s in SUBJECTS]
    )
    assert float(fit_probes(polarity, flipped, folds=3).transfer(1).min()) > 0.9


def test_tfidf_reads_words_and_nothing_else(tiny_model):
    pairs = some_pairs(VALUES[:2])
    assert fit_probes(tiny_model(), pairs, layers=[0], folds=3).tfidf.min() == 1, "the value's name is in the text"
    blank = pairs.assign(negative=pairs["positive"].str.replace(".", ";"))  # a token of its own for the model
    assert float(fit_probes(tiny_model(), blank, layers=[0], folds=3).tfidf.mean()) == pytest.approx(0.5, abs=0.15)


def test_accuracy_on_held_out_pairs(planted):
    values = VALUES[:3]
    model = planted(directions(values), noise=0.3)
    pairs = some_pairs(values)
    probes = fit_probes(model, pairs, folds=3)
    other = pairs.assign(positive="Others " + pairs["positive"], negative="Others " + pairs["negative"])
    held_out = probes.accuracy_on(model, other[other["value"] != values[0]], 1)
    assert held_out["value"].values.tolist() == list(values[1:]) and held_out.min() > 0.9
    swapped = other.rename(columns={"positive": "negative", "negative": "positive"})
    assert probes.accuracy_on(model, swapped, 1).max() < 0.1
    with pytest.raises(WorkbenchError, match="'universalism' were asked for"):
        probes.accuracy_on(model, other.assign(value="universalism"), 1)


# -- choosing ------------------------------------------------------------------------------------------------


def with_accuracy(rates: list[float], depth: int) -> Probes:
    """Probes of one value that are right on so many of the first pairs, layer by layer."""
    right = np.arange(100) < np.round(100 * np.array(rates))[:, None, None]
    return probes_of({"power": np.where(right, 1.0, -1.0) * np.array([[1], [-1]])}, n_layers=depth)


def test_layers_are_chosen_by_accuracy_and_never_at_the_end():
    rising = with_accuracy([0.5, 0.92, 0.97, 0.97, 0.95, 0.9, 0.99, 1.0], 8)
    assert rising.accuracy.values[0].tolist() == [0.5, 0.92, 0.97, 0.97, 0.95, 0.9, 0.99, 1.0]
    assert rising.choose_layer() == 6
    chosen = rising.choose_layers()
    assert chosen == [1, 2, 3, 4, 6], "above .9, the last 15 % left out"
    assert chosen.reason == "mean out-of-fold accuracy above 0.9, without the last 1 of 8"
    assert chosen.accuracy == pytest.approx(np.mean([0.92, 0.97, 0.97, 0.95, 0.99]))
    tied = with_accuracy([0.5, 0.92, 0.97, 0.97, 0.95, 0.9, 0.91, 1.0], 8)
    assert tied.choose_layer() == 3, "ties go to the later layer"
    for rule in ("published", "cross-fitted"):
        assert with_accuracy([1.0] * 32, 32).choose_layers(rule=rule) == list(range(27)), "without the last five of 32"
    with pytest.raises(WorkbenchError, match=r"at best 0.97\d?, at layer 3"):
        tied.choose_layers(0.98)
    with pytest.raises(WorkbenchError, match="rule 'best' were asked for.\nAllowed: 'published', 'cross-fitted'"):
        tied.choose_layers(rule="best")
    late = rising.held_out.isel(layer=[7])
    with pytest.raises(WorkbenchError, match=r"layers \[7\] of 8 only.*\n.*the last 15 % are never chosen"):
        replace(rising, held_out=late, weight=rising.weight.sel(layer=[7])).choose_layers()


def by_fold(rates: np.ndarray) -> Probes:
    """Probes whose accuracy in each of five folds is as given: (layer, fold)."""
    right = np.arange(20)[:, None] < np.round(20 * rates)[:, None]  # (layer, pair within the fold, fold)
    logit = np.where(right.reshape(len(rates), 1, 100), 1.0, -1.0) * np.array([[1], [-1]])
    return probes_of({"power": logit})


def test_cross_fitted_layers_are_told_on_folds_that_took_no_part():
    lucky = by_fold(np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.5]]))
    chosen = lucky.choose_layers(rule="cross-fitted")
    assert chosen == [0], "only the fold that sees layer 1 fail would be judged by folds that do not"
    assert chosen.accuracy == pytest.approx(((1 + 0) / 2 + 4) / 5)
    assert "in most folds, each judged by the others, without the last 2 of 10; 0.900 on folds" in chosen.reason
    for threshold in (0.75, 0.7):  # where all four folds' mean is not above, and where it is
        both = lucky.choose_layers(threshold, rule="cross-fitted")
        assert both == ([0] if threshold == 0.75 else [0, 1])
    steady = with_accuracy([0.5, 0.92, 0.97, 0.4], 10)
    spread_out = by_fold(np.repeat([[0.5], [0.95], [1.0], [0.4]], 5, axis=1))
    assert spread_out.choose_layers() == spread_out.choose_layers(rule="cross-fitted") == [1, 2]
    assert spread_out.choose_layers(rule="cross-fitted").accuracy == pytest.approx(0.975)
    with pytest.raises(WorkbenchError):
        by_fold(np.full((3, 5), 0.6)).choose_layers()
    none = by_fold(np.array([[0.6] * 5, [0.8] * 5, [0.7] * 5])).choose_layers(rule="cross-fitted")
    assert none == [1] and none.accuracy == pytest.approx(0.8), "where none passes, the best"
    assert steady.choose_layers() == [1, 2]


def test_the_best_of_many_layers_of_noise_is_told_as_chance_by_cross_fitting_only():
    rng, told = np.random.default_rng(0), {"published": [], "cross-fitted": []}
    for _ in range(30):
        noise = probes_of({"power": rng.normal(size=(60, 2, 20))}, n_layers=100)
        for rule, found in told.items():
            best = float(noise.accuracy.max()) - 1e-9
            found.append(noise.choose_layers(best if rule == "published" else 0.99, rule).accuracy)
    assert np.mean(told["published"]) > 0.62
    assert abs(np.mean(told["cross-fitted"]) - 0.5) < 0.04


# -- errors and files ----------------------------------------------------------------------------------------


def test_save_and_load(tiny_model, tmp_path):
    model = tiny_model()
    probes = fit_probes(model, some_pairs(), folds=3)
    again = Probes.load(probes.save(tmp_path / "probes.safetensors"), model)
    for name in (
        "weight", "bias", "held_out", "tfidf", "cross", "accuracy", "auroc", "brier", "calibration_error", "intervals",
        "auroc_intervals",
    ):  # fmt: skip
        xr.testing.assert_identical(getattr(probes, name), getattr(again, name))
    pd.testing.assert_frame_equal(again.examples, probes.examples)
    assert probes.activations is not None and again.activations is None
    assert again.choose_layers(0.1, "cross-fitted") == probes.choose_layers(0.1, "cross-fitted")
    thrice = Probes.load(again.save(tmp_path / "probes.safetensors"))
    xr.testing.assert_identical(thrice.cross, probes.cross)
    assert again.provenance == probes.provenance and again.method == "logistic"
    assert {"model", "fingerprint", "hook", "position", "template", "pairs", "seed", "torch", "folds_by"} <= set(
        again.provenance
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probes.safetensors"]
    with pytest.raises(WorkbenchError, match="Probes of llama were to be used with qwen2"):
        Probes.load(tmp_path / "probes.safetensors", tiny_model("qwen2"))
    with pytest.raises(WorkbenchError, match="no such file"):
        Probes.load(tmp_path / "nowhere")
    (tmp_path / "torn").write_bytes((tmp_path / "probes.safetensors").read_bytes()[:300])
    with pytest.raises(WorkbenchError, match="not a file of the workbench"):
        Probes.load(tmp_path / "torn")


def test_the_seed_decides_the_folds_and_nothing_else(planted):
    model = planted(directions(VALUES[:3]), noise=4.0)
    one, same, other = (fit_probes(model, some_pairs(), folds=3, seed=s) for s in (0, 0, 1))
    xr.testing.assert_identical(one.accuracy, same.accuracy)
    xr.testing.assert_identical(one.weight, other.weight)
    assert not one.auroc.equals(other.auroc)


def test_bad_pairs_and_options_are_refused(tiny_model):
    model, pairs = tiny_model(), some_pairs()
    for wrong, message in (
        (pairs.drop(columns="negative"), "found: columns"),
        (pairs.iloc[:0], "0 rows"),
        (pairs.assign(negative=pairs["positive"]), "one text twice in row 0"),
        (pairs.assign(positive=pairs["positive"].where(pairs.index > 0)), "empty or missing text in row 0"),
    ):
        with pytest.raises(WorkbenchError, match=f"(?i){message}"):
            fit_probes(model, wrong)
    with pytest.raises(WorkbenchError, match="Probes by 'svm'"):
        fit_probes(model, pairs, "svm")
    with pytest.raises(WorkbenchError, match="1 folds were asked for"):
        fit_probes(model, pairs, folds=1)
    probes = fit_probes(model, pairs, layers=[1], folds=3)
    with pytest.raises(WorkbenchError, match=r"Probes at layers \[2\]"):
        probes.vectors(2)
    with pytest.raises(WorkbenchError, match="allowed: an array with d_model and layer|Allowed: an array"):
        probes.logit(xr.DataArray(np.zeros(32), dims="d_model"))
