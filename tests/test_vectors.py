"""Value vectors: their algebra held against plain numpy and against what theory says, their files, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file
from test_probes import some_pairs

from workbench.errors import WorkbenchError
from workbench.probes import fit_probes
from workbench.probes.pairs import PairActivations, Resampled
from workbench.values import VALUES, angles
from workbench.vectors import ValueVectors, labelled, stability

MODEL = {"model": "m", "fingerprint": "sha256:m", "method": "mean_difference"}


def vectors(seed=0, layers=(0, 3), d=16, values=VALUES, dtype=np.float64, **provenance) -> ValueVectors:
    shape = (len(values), len(layers), d)
    numbers = np.random.default_rng(seed).normal(size=shape) * np.arange(1, len(values) + 1)[:, None, None] + 2
    return ValueVectors(labelled(numbers.astype(dtype), values, layers, MODEL | provenance))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def close(found: ValueVectors, expected, **tolerance):
    assert found.array.values == pytest.approx(np.asarray(expected), **(tolerance or {"abs": 1e-9}))


@pytest.fixture(scope="module")
def probes(tiny_model):
    return fit_probes(tiny_model(), some_pairs(VALUES), "mean_difference", folds=3)


# --- Choosing ---


def test_what_is_asked_for_comes_in_the_order_asked():
    raw = vectors()
    assert (raw.values, raw.layers, raw.d_model) == (list(VALUES), [0, 3], 16)
    close(raw["power"], raw.array.values[[4]])
    close(raw[["power", "security"]].sel(layer=[3, 0]), raw.array.values[[4, 5]][:, ::-1])
    at = raw.at(np.int64(3))
    assert at.dims == ("value", "d_model") and int(at["layer"]) == 3 and at.attrs == raw.provenance
    assert (at.values == raw.array.values[:, 1]).all()
    assert raw.sel("power").provenance == raw.provenance


def test_dims_come_in_any_order_and_precision_is_kept():
    raw = vectors()
    turned = ValueVectors(raw.array.transpose("d_model", "value", "layer").assign_coords(d_model=range(16)))
    xr.testing.assert_identical(turned.array, raw.array)
    kinds = {np.float16: np.float32, np.float32: np.float32, np.float64: np.float64, np.int32: np.float64}
    for given, kept in kinds.items():
        held = vectors(dtype=given)
        assert {v.array.dtype for v in (held, held * 2, held.centred(), held + held, held.blend(1))} == {np.dtype(kept)}


def test_the_name_tells_what_it_holds():
    said = repr(vectors().centred().normalised() * -2)
    assert "10 values; 2 layers from 0 to 3; d_model 16; mean_difference on m; centred; normalised; times -2" in said
    assert "power; 2 layers" in repr(vectors()["power"])


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda v: v["pwoer"], "no vector of pwoer"),
        (lambda v: v[["power", "self"]], "no vector of self"),
        (lambda v: v.at(1), "no vector of 1\nAllowed: 0, 3"),
        (lambda v: v.sel(layer=[]), r"layers \(none\)"),
        (lambda v: v[["power", "power"]], "each once"),
    ],
)
def test_an_unknown_choice_is_told(choose, said):
    with pytest.raises(WorkbenchError, match=said):
        choose(vectors())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.values, "ndarray with dims None"),
        (lambda a: a.isel(layer=0), "dims \\('value', 'd_model'\\)"),
        (lambda a: a.rename(d_model="width"), "width"),
        (lambda a: a.drop_vars("value"), "names along value"),
        (lambda a: a.drop_vars("layer"), "whole numbers along layer"),
        (lambda a: a.assign_coords(value=range(10)), "names along value"),
        (lambda a: a.assign_coords(layer=[0.0, 1.5]), "whole numbers along layer"),
        (lambda a: a.assign_coords(layer=[-1, 1]), "whole numbers along layer"),
        (lambda a: a.assign_coords(layer=[1, 1]), "each once"),
        (lambda a: a.isel(value=[0, 0]), "each once"),
        (lambda a: a.isel(value=[]), "dims"),
        (lambda a: a.where(a["value"] != "power"), "NaN or infinity: power at layer 0, power at layer 3"),
        (lambda a: a.where(a["layer"] != 3, np.inf), "stimulation at layer 3.* and 5 more"),
        (lambda a: a.where(a["value"] != "power", 0), "a vector of length 0: power at layer 0"),
        (lambda a: a.astype(complex), "numbers of complex128"),
        (lambda a: a.astype(str), "numbers of <U"),
    ],
)
def test_what_is_no_set_of_vectors_is_refused(change, said):
    with pytest.raises(WorkbenchError, match=f"(?s){said}"):
        ValueVectors(change(vectors().array))


# --- Algebra ---


def test_unit_and_centred():
    raw = vectors()
    close(raw.normalised(), unit(raw.array.values))
    assert float(abs(raw.centred().array.mean("value")).max()) == pytest.approx(0, abs=1e-12)
    close(raw.centred(), raw.array.values - raw.array.values.mean(0))
    assert raw.centred().provenance == {**MODEL, "steps": ["centred"]} and raw.provenance == MODEL
    tiny = ValueVectors(raw.array.astype(np.float32) * np.float32(1e-30))  # its squares are 0 in float32
    close(tiny.normalised(), unit(raw.array.values), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_centring_and_projecting_say_when_nothing_is_left(dtype):
    raw = vectors(dtype=dtype)
    alike = ValueVectors(raw.array.isel(value=0).drop_vars("value").expand_dims(value=list(VALUES)) * 1.1)
    with pytest.raises(WorkbenchError, match="nothing left of self-direction at layer 0.* and 15 more"):
        alike.centred()
    with pytest.raises(WorkbenchError, match="nothing left of power at layer 0, power at layer 3\nAllowed"):
        raw[["power", "hedonism"]].project_out(raw[["power", "security"]] * 3)
    with pytest.raises(WorkbenchError, match="a vector of length 0"):
        raw - raw


def test_sums_differences_and_multiples():
    one, two = vectors(0), vectors(1, method="logistic")
    a, b = one.array.values, two.array.values
    close(one + two, a + b)
    close(one - two, a - b)
    for half in (one * 0.5, 0.5 * one, np.float64(0.5) * one, one * np.float32(0.5)):
        close(half, a / 2)
    close(-one, -a)
    close(one + two.sel(list(reversed(VALUES)), [3, 0]), a + b)
    made = one - two
    assert made.provenance["fingerprint"] == "sha256:m" and "method" not in made.provenance
    assert made.provenance["steps"][0].startswith("minus ValueVectors(10 values") and "logistic" in repr(made)
    for nonsense in (lambda: one + 1, lambda: one * one, lambda: one * "2", lambda: 1 - one, lambda: np.ones(2) * one):
        with pytest.raises(TypeError):
            nonsense()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (vectors(fingerprint="sha256:other"), "weights sha256:m and sha256:other"),
        (ValueVectors(vectors().array.drop_attrs()), "weights sha256:m and None"),
        (vectors(layers=(0, 4)), r"layers \[0, 3\] and \[0, 4\]"),
        (vectors(d=17), "d_model 16 and 17"),
        (vectors(values=VALUES[:9]), "the same values"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(other, said):
    joins = [lambda a, b: a + b, lambda a, b: a - b]
    if "values" not in said:  # directions to project out may be of any value
        joins.append(lambda a, b: a.project_out(b))
    if "weights" not in said:  # two models may be compared
        joins.append(lambda a, b: a.similarity_to(b))
    for join in joins:
        with pytest.raises(WorkbenchError, match=f"were to be brought together.(?s:.*){said}"):
            join(vectors(), other)


def test_what_is_left_stands_at_right_angles():
    raw, rng = vectors(), np.random.default_rng(5)
    row = rng.normal(size=16)
    left = raw.project_out(row)
    assert float(abs(left.array.values @ row).max()) < 1e-10 and left.values == raw.values
    close(left, raw.array.values - (raw.array.values @ unit(row))[..., None] * unit(row))
    close(raw.project_out(-7 * row), left.array)
    close(left.project_out(row), left.array)

    named = raw.project_out(["power", "security"])
    assert named.values == [v for v in VALUES if v not in ("power", "security")]
    for layer in raw.layers:  # an independent implementation: Gram-Schmidt by QR
        q, _ = np.linalg.qr(raw.at(layer).values[[4, 5]].T)
        others = raw.sel(named.values).at(layer).values
        assert named.at(layer).values == pytest.approx(others - others @ q @ q.T)
    close(raw.sel(named.values).project_out(raw[["power", "security"]]), named.array)
    close(raw.project_out("power"), raw.sel([v for v in VALUES if v != "power"]).project_out(raw["power"] * 9).array)
    power, short = raw["power"].array.astype(np.float32), (raw["security"] * 1e-9).array  # small, yet a direction
    close(raw.sel(named.values).project_out(ValueVectors(xr.concat([raw["power"].array, short], "value"))), named.array)
    third = (power / np.float32(3)).assign_coords(value=["third"])  # the same but for its rounding: no second one
    twice = ValueVectors(xr.concat([power, third], "value"))
    close(raw["hedonism"].project_out(twice), raw["hedonism"].project_out(raw["power"]).array, abs=1e-5)
    assert named.provenance["steps"] == ["without power, security"]
    with pytest.raises(WorkbenchError, match=r"an array of shape \(2, 16\)"):
        raw.project_out(rng.normal(size=(2, 16)))
    with pytest.raises(WorkbenchError, match="d_model 16 and 3"):
        raw.project_out([1.0, 2, 3])
    with pytest.raises(WorkbenchError, match="no vector of pwoer"):
        raw.project_out("pwoer")


@pytest.mark.parametrize("order", [None, (0, 4, 8, 1, 3, 2, 9, 7, 6, 5)])
def test_a_blend_lies_between_its_neighbours(order):
    raw, at = vectors(), angles(order=order)
    shown = np.array(unit(raw.array.values))
    close(raw.blend(at, order=order), shown)
    first, after = np.argsort(at)[:2]
    middle = raw.blend(np.pi / 10, order=order)
    assert middle.values == ["18°"] and middle.layers == raw.layers
    close(middle, unit(shown[[first]] + shown[[after]]))
    close(raw.blend(np.pi / 10 - 4 * np.pi, order=order), middle.array)
    close(raw.blend(-0.01, order=order), raw.blend(2 * np.pi - 0.01, order=order).array)
    close(raw.blend([np.pi / 10, -0.01], order=order)["18°"], middle.array)
    mixed = raw.sel(list(reversed(VALUES))).blend(np.pi / 10, order=order)  # whatever the order of the vectors
    close(mixed, middle.array)


def test_a_shared_wedge_is_the_vector_between():
    raw = vectors()
    shown = unit(raw.array.values)
    pair, after = [VALUES.index("conformity"), VALUES.index("tradition")], VALUES.index("benevolence")
    between, at = unit(shown[pair].sum(0, keepdims=True)), angles("wedges")
    close(raw.blend(at[pair[0]], layout="wedges"), between)
    close(raw.blend((at[pair[0]] + at[after]) / 2, layout="wedges"), unit(between + shown[[after]]))


def test_a_blend_needs_all_ten_and_a_direction_between():
    raw = vectors()
    with pytest.raises(WorkbenchError, match="no vector of power"):
        raw[[v for v in VALUES if v != "power"]].blend(0)
    opposed = raw.array.copy()
    opposed[1] = -opposed[0]
    with pytest.raises(WorkbenchError, match="NaN or infinity: 18° at layer 0"):
        ValueVectors(opposed).blend(np.pi / 10)


def test_similarities():
    raw, other = vectors(), vectors(1, fingerprint="sha256:other")
    for held, names in ((raw, list(VALUES)), (raw[["power", "security"]], ["power", "security"])):
        for centred, mean in ((True, held.at(3).mean("value")), (False, 0)):
            found, shown = held.similarity(3, centred), unit((held.at(3) - mean).values)
            assert found.sel(value=names, other=names).values == pytest.approx(shown @ shown.T)
            assert found.dims == ("value", "other") and found.name == f"{'centred' if centred else 'raw'} cosine"
    alike = raw.similarity_to(raw * 3)
    assert alike.dims == ("value", "layer") and alike.values == pytest.approx(1)
    assert raw.similarity_to(-raw).values == pytest.approx(-1)
    expected = (unit(raw.array.values) * unit(other.array.values)).sum(-1)
    assert raw.similarity_to(other.sel(list(reversed(VALUES)), [3, 0])).values == pytest.approx(expected)


# --- Stability ---


def drawn(signal: float, m=50, d=2000, seed=0) -> Resampled:
    """Of values planted as `signal` times unit vectors; each pair adds isotropic noise of length 1."""
    rng, names = np.random.default_rng(seed), list(VALUES)
    truth = signal * unit(rng.normal(size=(10, d)))
    pairs = truth[:, None] + rng.normal(size=(10, m, d)) / np.sqrt(d)
    fits = pairs.mean(1)
    again = np.stack([[p[rng.integers(m, size=m)].mean(0) for p in pairs] for _ in range(60)])
    order = [rng.permutation(m) for _ in range(20)]
    halves = np.stack([np.stack([pairs[:, o[h::2]].mean(1) for o in order]) for h in (0, 1)])
    label = {"value": names}
    return Resampled(
        vectors=xr.DataArray(fits, dims=("value", "d_model"), coords={**label, "layer": 1}),
        bootstrap=xr.DataArray(again, dims=("resample", "value", "d_model"), coords={**label, "layer": 1}),
        halves=xr.DataArray(halves, dims=("half", "split", "value", "d_model"), coords={**label, "half": ["a", "b"]}),
        differences=xr.DataArray(), draws="planted",
    )


@pytest.mark.parametrize("signal", [0.1, 0.3, 1.0])
def test_stability_is_what_theory_says(signal):
    """Noise 1/m of squared length on a mean of m: the cosines follow from the lengths alone, d being large."""
    m, table = 50, stability(drawn(signal))
    fitted = signal**2 + 1 / m
    # a bootstrap mean holds the fitted one and noise of its own, (m - 1) / m of a pair's, again over m
    assert table["cosine"].values == pytest.approx(np.sqrt(fitted / (fitted + (m - 1) / m**2)), abs=0.02)
    # halves share the signal; from the same m pairs each half's noise is 2 / m
    assert table["split_half"].values == pytest.approx(signal**2 / (signal**2 + 2 / m), abs=0.06)
    assert (table["low"] < table["cosine"]).all() and (table["cosine"] < table["high"]).all()
    assert table["value"].tolist() == list(VALUES)


def test_what_all_values_share_makes_vectors_look_stable():
    held = drawn(0.1)
    shared = 3 * unit(np.random.default_rng(9).normal(size=2000))
    added = xr.DataArray(shared, dims="d_model")
    held = replace(held, **{name: getattr(held, name) + added for name in ("vectors", "bootstrap", "halves")})
    raw, centred = stability(held), stability(held, centred=True)
    assert raw["split_half"].min() > 0.98 and centred["split_half"].max() < 0.5
    assert np.allclose(centred["split_half"], stability(drawn(0.1), centred=True)["split_half"])


def test_quantiles_are_of_the_bootstrap_cosines():
    held = drawn(0.3)
    cosine = (unit(held.bootstrap.values) * unit(held.vectors.values)).sum(-1)
    table = stability(held)
    assert table[["low", "high"]].values.T == pytest.approx(np.quantile(cosine, [0.025, 0.975], axis=0))
    turned = held.bootstrap.sel(value=list(reversed(VALUES))).transpose()
    assert stability(replace(held, bootstrap=turned))["cosine"].values == pytest.approx(cosine.mean(0))


def test_stability_takes_what_pairs_resample():
    table = stability(PairActivations.of_words(some_pairs()).resample(0, n=20, method="mean_difference"))
    assert table["value"].tolist() == list(VALUES[:3]) and table["cosine"].between(0.5, 1).all()


# --- Models, files ---


def test_vectors_of_probes_and_their_file(probes, tiny_model, tmp_path):
    model, found = tiny_model(), ValueVectors.of(probes)
    assert found.array.dtype == np.float32 and (found.array.values == probes.weight.values).all()
    assert found.provenance == probes.provenance and found.check(model) is found
    for held in (found, found.centred().normalised(), found.blend([0.0, 1.0]).sel(layer=[2, 0])):
        again = ValueVectors.load(held.save(tmp_path / "v.safetensors"), model)
        xr.testing.assert_identical(again.array, held.array)
    with pytest.raises(WorkbenchError, match="Vectors of llama were to be used with gpt2"):
        ValueVectors.load(tmp_path / "v.safetensors", tiny_model("gpt2"))
    elsewhere = ValueVectors(found.array.drop_attrs())
    assert elsewhere.check(tiny_model("gpt2")) is elsewhere  # as wide and as deep: nothing tells them apart
    with pytest.raises(WorkbenchError, match="d_model 31\nAllowed: d_model 32"):
        ValueVectors(elsewhere.array[..., :31]).check(model)
    with pytest.raises(WorkbenchError, match=r"unknown: \[7\]"):
        ValueVectors(elsewhere.array.assign_coords(layer=[0, 1, 7])).check(model)


def test_damaged_files_are_told(probes, tmp_path):
    whole, path = ValueVectors.of(probes).save(tmp_path / "whole").read_bytes(), tmp_path / "v"
    probes.save(path)
    with pytest.raises(WorkbenchError, match="it holds probes"):
        ValueVectors.load(path)
    save_file({"vectors": np.ones((1, 1, 2))}, path, {"workbench": '{"kind": "vectors", "values": ["a", "b"]}'})
    with pytest.raises(WorkbenchError, match="'layers'"):
        ValueVectors.load(path)
    save_file({"vectors": np.full((1, 1, 2), np.nan)}, path,
              {"workbench": '{"kind": "vectors", "values": ["a"], "layers": [0], "provenance": {}}'})
    with pytest.raises(WorkbenchError, match="NaN or infinity: a at layer 0"):
        ValueVectors.load(path)
    for cut in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(WorkbenchError, match="not a file of the workbench"):
            ValueVectors.load(path)
