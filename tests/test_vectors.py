"""Algebra of value vectors."""

import numpy as np
import pytest
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.geometry import cosines
from workbench.values import VALUES, angles
from workbench.vectors import blend, centre, load_vectors, normalise, save_vectors, value_vectors


def vectors(seed=0, d=16) -> xr.DataArray:
    draw = np.random.default_rng(seed).normal(size=(10, d)) * np.arange(1, 11)[:, None] + 2
    return xr.DataArray(draw, dims=("value", "d_model"), coords={"value": list(VALUES)}, attrs={"model": "m"})


def test_unit_and_centred():
    raw = vectors()
    assert np.linalg.norm(normalise(raw), axis=1) == pytest.approx(1) and normalise(raw).attrs == raw.attrs
    assert float(abs(centre(raw).mean("value")).max()) == pytest.approx(0, abs=1e-12)
    assert cosines(centre(raw), centred=False).values == pytest.approx(cosines(raw).values)
    with pytest.raises(WorkbenchError, match="a vector of length 0"):
        normalise(raw * 0)


@pytest.mark.parametrize("order", [None, (0, 4, 8, 1, 3, 2, 9, 7, 6, 5)])
def test_a_blend_lies_between_its_neighbours(order):
    raw, at = vectors(), angles(order=order)
    unit = normalise(raw)
    xr.testing.assert_allclose(
        blend(raw, at, order=order).drop_vars("angle").rename(angle="value"), unit.drop_vars("value")
    )
    first = list(VALUES)[int(np.argmin(at))]
    after = list(VALUES)[int(np.argsort(at)[1])]
    middle = blend(raw, np.pi / 10, order=order)
    expected = normalise(unit.sel(value=[first]) + unit.sel(value=[after]).values).squeeze()
    assert middle.values == pytest.approx(expected.values) and middle.dims == ("d_model",)
    assert blend(raw, np.pi / 10 - 4 * np.pi, order=order).values == pytest.approx(middle.values)
    assert blend(raw, -0.01, order=order).values == pytest.approx(blend(raw, 2 * np.pi - 0.01, order=order).values)


def test_a_shared_wedge_is_the_vector_between():
    raw = vectors()
    unit = normalise(raw)
    shared = normalise(unit.sel(value=["conformity"]) + unit.sel(value=["tradition"]).values).squeeze()
    at = angles("wedges")[VALUES.index("conformity")]
    assert blend(raw, at, layout="wedges").values == pytest.approx(shared.values)


def test_a_blend_needs_all_ten():
    with pytest.raises(WorkbenchError, match="no vector of power"):
        blend(vectors().drop_sel(value="power"), 0)


def test_vectors_of_probes_and_their_file(tiny_model, tmp_path):
    from test_probes import some_pairs

    from workbench.probes import fit_probes

    model = tiny_model()
    probes = fit_probes(model, some_pairs(), "mean_difference", folds=3)
    found = value_vectors(probes, 1)
    assert found.values == pytest.approx(probes.weight.sel(layer=1).values, abs=1e-6)
    assert int(value_vectors(probes)["layer"]) == probes.choose_layer()
    again = load_vectors(save_vectors(tmp_path / "v.safetensors", found), model)
    xr.testing.assert_identical(again, found)
    with pytest.raises(WorkbenchError, match="Vectors of llama were to be used with gpt2"):
        load_vectors(tmp_path / "v.safetensors", tiny_model("gpt2"))
