"""Figures of the circle as data: cosines, maps, nulls, profiles."""

import itertools

import numpy as np
import pytest
from drawn import SCRAMBLED, figures, known_rise, planted, resampled

from workbench import geometry
from workbench.errors import WorkbenchError
from workbench.figures.style import HUMAN
from workbench.values import VALUES, VALUES19, angles, circular_steps


def test_cosines_raw_beside_centred_on_one_scale_round_zero():
    vectors = planted()
    figure = figures.cosine_heatmap(vectors)
    for trace, centred in zip(figure.data, (False, True), strict=False):
        shown, wanted = np.array(trace.z, float), geometry.cosines(vectors, centred=centred).values
        off = ~np.eye(10, dtype=bool)
        np.testing.assert_allclose(shown[off], wanted[off])
        assert np.isnan(np.diag(shown)).all() and trace.coloraxis == "coloraxis"
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmid, axis.cmax) == (-1, 0, 1)
    assert len(figures.cosine_heatmap(vectors, centred=False).data) == 1
    assert list(figures.cosine_heatmap(vectors, order=SCRAMBLED).data[0].x) == [VALUES[k] for k in SCRAMBLED]


@pytest.mark.parametrize("layout", ["equal", "wedges"])
def test_the_ideal_stands_beside_in_the_same_order(layout):
    figure = figures.cosine_heatmap(planted(), order=SCRAMBLED, layout=layout)
    theta = angles(layout)  # place by place: the ideal is the same band whichever values hold the places
    wanted = np.cos(theta[:, None] - theta)
    shown, off = np.array(figure.data[2].z, float), ~np.eye(10, dtype=bool)
    np.testing.assert_allclose(shown[off], wanted[off], atol=1e-8)
    assert len(figures.cosine_heatmap(planted(), ideal=False).data) == 2
    people = figures.cosine_heatmap(planted(), reference="svs").data[3]
    np.testing.assert_allclose(np.array(people.z, float)[off], geometry.human_reference("svs").values[off])


def boxes(figure) -> list[tuple[str, float, float, float, float]]:
    """Name, left, right, bottom, top of every label in pixels; letters as wide as they are in bold."""
    scale, found = (figure.layout.width - 20) / np.ptp(figure.layout.xaxis.range), []
    for label in figure.layout.annotations:
        text = label.text.replace("<b>", "").replace("</b>", "").replace("<i>", "").replace("</i>", "")
        wide, high = 0.53 * label.font.size * len(text), 1.33 * label.font.size
        size = (label.x * scale, label.y * scale + (label.yshift or 0))
        left = size[0] - {"left": 0, "center": wide / 2, "right": wide}[label.xanchor]
        bottom = size[1] - {"bottom": 0, "middle": high / 2, "top": high}[label.yanchor]
        found.append((text, left, left + wide, bottom, bottom + high))
    return found


@pytest.mark.parametrize("layout", ["equal", "wedges"])
@pytest.mark.parametrize("noise", [0, 0.5, 1.5, 4])
def test_labels_of_the_circle_neither_overlap_nor_leave_the_picture(noise, layout):
    check_labels(figures.circle_map(None, geometry.circumplex_fit(planted(noise), layout=layout)), VALUES)


@pytest.mark.parametrize("noise", [0, 0.5, 1.5])
def test_so_do_those_of_the_nineteen_and_beside_people(noise):
    check_labels(figures.circle_map(planted(noise, among=VALUES19)), VALUES19)
    check_labels(figures.circle_map(planted(noise), human="pvq40"), VALUES)


def check_labels(figure, values) -> None:
    labels, half = boxes(figure), (figure.layout.width - 20) / 2
    assert {label[0] for label in labels} >= set(values)
    for (a, l1, r1, b1, t1), (b, l2, r2, b2, t2) in itertools.combinations(labels, 2):
        assert r1 <= l2 or r2 <= l1 or t1 <= b2 or t2 <= b1, f"{a} lies on {b}"
    for name, left, right, _, _ in labels:
        assert -half <= left and right <= half, f"{name} leaves the picture"


def test_the_circle_map_draws_vectors_beside_their_ideal_places():
    vectors = planted(noise=0)
    fit = geometry.circumplex_fit(vectors)
    figure = figures.circle_map(vectors, fit)
    (points,) = [trace for trace in figure.data if trace.name == "value vector"]
    (ideal,) = [trace for trace in figure.data if trace.name == "ideal place"]
    theta = angles()
    np.testing.assert_allclose(np.c_[ideal.x, ideal.y], np.c_[np.cos(theta), np.sin(theta)], atol=1e-9)
    np.testing.assert_allclose(np.c_[points.x, points.y], np.c_[ideal.x, ideal.y], atol=1e-6)  # as planted
    assert list(points.marker.color) == list(figures.COLOURS.values())
    assert figure.layout.yaxis.scaleanchor == "x"
    said = figure.layout.title.subtitle.text
    assert "correspondence index <b>1.00</b>" in said and "p = 5.5 × 10⁻⁶" in said
    off = figures.circle_map(planted(noise=1))
    (points,) = [trace for trace in off.data if trace.name == "value vector"]
    assert np.hypot(np.array(points.x) - ideal.x, np.array(points.y) - ideal.y).max() > 0.05


def test_the_circle_map_of_another_order():
    vectors = planted(noise=0, order=SCRAMBLED)
    figure = figures.circle_map(vectors, order=SCRAMBLED)
    (points,) = [trace for trace in figure.data if trace.name == "value vector"]
    theta = angles(order=SCRAMBLED)
    np.testing.assert_allclose(np.c_[points.x, points.y], np.c_[np.cos(theta), np.sin(theta)], atol=1e-6)
    assert "Schwartz" not in figure.layout.title.text
    assert not any(trace.fill for trace in figure.data), "groups that do not stand together have no sectors"
    assert sum(trace.fill == "toself" for trace in figures.circle_map(planted()).data) == 4
    with pytest.raises(WorkbenchError, match="another order than its fit's"):
        figures.circle_map(vectors, geometry.circumplex_fit(vectors), order=SCRAMBLED)


def test_people_stand_on_the_same_circle():
    human = geometry.human_reference("svs")
    figure = figures.circle_map(planted(), human=human)
    (people,) = [trace for trace in figure.data if trace.name == "people"]
    places = geometry.planted_axis_map(human)
    np.testing.assert_allclose(np.c_[people.x, people.y], places[["x", "y"]])
    assert people.marker.line.color == HUMAN and list(people.marker.color) == list(figures.COLOURS.values())
    assert "people" in figure.layout.title.subtitle.text
    assert not any(trace.name == "people" for trace in figures.circle_map(planted()).data)


def test_ellipses_hold_the_resamples():
    vectors = planted(1.0)
    fit = geometry.circumplex_fit(vectors, resampled(vectors, 0.6, 400))
    figure = figures.circle_map(None, fit)
    drawn = [trace for trace in figure.data if trace.fill == "toself" and trace.line.width == 1]
    assert len(drawn) == 10 and "Ellipses: 95 %" in figure.layout.title.subtitle.text
    for trace, row in zip(drawn, fit.spread().itertuples(), strict=True):
        off = np.c_[np.array(trace.x) - row.x, np.array(trace.y) - row.y]
        held = np.einsum("ki,ij,kj->k", off, np.linalg.inv([[row.cxx, row.cxy], [row.cxy, row.cyy]]), off)
        np.testing.assert_allclose(held, 1)
    assert not [t for t in figures.circle_map(vectors).data if t.fill == "toself" and t.line.width == 1]


@pytest.mark.parametrize("kind", ["metric", "nonmetric"])
def test_a_map_by_mds_takes_its_places_from_the_fit(kind):
    fit = geometry.circumplex_fit(planted(1.0))
    figure = figures.circle_map(None, fit, kind=kind)
    (points,) = [trace for trace in figure.data if trace.name == "value vector"]
    scaled = fit.mds(kind)
    np.testing.assert_allclose(np.c_[points.x, points.y], scaled.points[["x", "y"]])
    said = figure.layout.title.subtitle.text
    assert f"Stress-1 {scaled.stress1:.2f}" in said and "MDS" in said
    with pytest.raises(WorkbenchError, match="kind of MDS"):
        figures.circle_map(None, fit, kind="sammon")


def test_names_of_groups_have_a_corner_each():
    for figure in (figures.circle_map(planted()), figures.circle_map(planted(among=VALUES19))):
        places = {label.text: (np.sign(label.x), np.sign(label.y)) for label in figure.layout.annotations
                  if label.text.startswith("<i>")}  # fmt: skip
        assert places == {"<i>openness to change</i>": (1, 1), "<i>self-enhancement</i>": (-1, 1),
                          "<i>conservation</i>": (-1, -1), "<i>self-transcendence</i>": (1, -1)}  # fmt: skip


# --- nulls, steps, profiles, layers ---


@pytest.mark.parametrize("statistic", ["ci", "spearman", "pearson", "procrustes_r2"])
def test_the_null_holds_every_order_once(statistic):
    fit = geometry.circumplex_fit(planted(2.0))
    figure = figures.permutation_null(fit, statistic=statistic)
    assert sum(figure.data[0].y) == 181_440
    observed, p = getattr(fit, statistic), getattr(fit, dict(ci="p", procrustes_r2="procrustes_p").get(
        statistic, f"{statistic}_p"))  # fmt: skip
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == observed
    said = figure.layout.annotations[0].text
    assert f"observed {observed:.3f}" in said and "exact" in said
    assert f"{round(p * 181_440):,} of 181,440" in said
    assert figure.layout.yaxis.type == "log"
    with pytest.raises(WorkbenchError, match="null of 'tau'"):
        figures.permutation_null(fit, statistic="tau")


def test_a_null_that_is_drawn_says_so():
    fit = geometry.circumplex_fit(planted(among=VALUES19), labellings=999)
    figure = figures.permutation_null(fit)
    assert sum(figure.data[0].y) == 1000
    assert "Monte Carlo" in figure.layout.annotations[0].text and "1 of 1,000" in figure.layout.annotations[0].text
    assert "999 labellings drawn at random" in figure.layout.title.subtitle.text
    assert "Monte Carlo" in figures.circle_map(None, fit).layout.title.subtitle.text


def test_similarity_by_step_shows_pairs_means_people_and_the_ideal():
    vectors = planted(1.0)
    fit, human = geometry.circumplex_fit(vectors, resampled(vectors)), geometry.human_reference()
    lines = {trace.name: trace for trace in figures.similarity_by_step(fit, "pvq40-ipsatised").data}
    dots, off = lines["pairs of values"], circular_steps()[np.triu_indices(10, 1)]
    assert len(dots.x) == 45 and abs(np.array(dots.x) - np.sort(off)).max() < 0.3
    np.testing.assert_allclose(np.sort(dots.y), np.sort(fit.similarity.values[np.triu_indices(10, 1)]))
    np.testing.assert_allclose(lines["mean"].y, fit.by_step)
    np.testing.assert_allclose(np.array(lines["mean"].y) - lines["mean"].error_y.arrayminus, fit.step_intervals["low"])
    np.testing.assert_allclose(lines["correlation among people (pvq40-ipsatised)"].y,
                               geometry.circumplex_fit(human).by_step)  # fmt: skip
    closeness = np.cos(np.pi * off / 5)
    fitted = np.polyfit(closeness, fit.similarity.values[np.triu_indices(10, 1)], 1)
    curve = lines["ideal cosine, fitted"].y
    np.testing.assert_allclose([curve[0], curve[-1]], np.polyval(fitted, [np.cos(np.pi / 5), -1]))
    bare = figures.similarity_by_step(geometry.circumplex_fit(vectors))
    (mean,) = [trace for trace in bare.data if trace.name == "mean"]
    assert not mean.error_y.visible and "interval" not in bare.layout.title.subtitle.text
    assert len(bare.data) == 3


def test_the_ideal_curve_meets_a_planted_circle():
    exact = figures.similarity_by_step(geometry.circumplex_fit(planted(0)))
    said = exact.layout.title.subtitle.text.replace("<br>", " ")
    assert "1.00 cos(angle)" in said and "R² 1.00" in said


def test_a_circular_profile_recovers_its_cosine():
    theta = angles()
    y = dict(zip(VALUES, 0.1 + 0.5 * np.cos(theta - theta[4] - np.radians(20)), strict=True))
    figure = figures.circular_profile({**y, "power": 9.0}, value="power", measure="rise")
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "elevation 0.10" in said and "amplitude 0.50" in said and "+20° from power" in said and "R² 1.00" in said
    curve, dots = figure.data
    assert dots.x[4] == pytest.approx(0, abs=1e-6) and "not fitted" in dots.hovertext[4]
    assert dots.x[5] == pytest.approx(36) and dots.x[9] == pytest.approx(180)
    np.testing.assert_allclose(np.interp(np.delete(dots.x, 4), curve.x, curve.y), np.delete(dots.y, 4), atol=1e-3)
    assert curve.x[np.argmax(curve.y)] == 20
    bounded = figures.circular_profile(y, low=[0.0] * 10, high={v: 1.0 for v in VALUES})
    assert "interval 0.000 to 1.000" in bounded.data[1].hovertext[0] and bounded.data[1].error_y.visible
    for wrong, match in (({"speed": 1.0}, "speed"), (geometry.human_reference(), "dimensions")):
        with pytest.raises(WorkbenchError, match=match):
            figures.circular_profile(wrong)
    with pytest.raises(WorkbenchError, match="profile of 'face'"):
        figures.circular_profile(y, value="face")


def test_a_row_knows_whose_it_is():
    similarity = geometry.circumplex_fit(planted(0.5)).similarity
    figure = figures.circular_profile(similarity.sel(value="hedonism"))
    assert "profile of hedonism" in figure.layout.title.text
    assert np.isnan(figure.data[1].y[2]), "the similarity with itself says nothing"
    row = figures.circular_profile(known_rise().sel(steered="security"))
    assert "profile of security" in row.layout.title.text and row.data[1].y[5] == pytest.approx(0.25)


def test_layers_are_shown_with_and_without_their_choice():
    scan = geometry.layer_scan(np.stack([planted(noise, seed=k).values for k, noise in enumerate((5, 2, 4))]))
    figure = figures.layer_geometry(scan)
    lines = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(lines["correspondence index"].y, scan["ci"])
    np.testing.assert_allclose(lines["p, layer named beforehand"].y, scan["p"])
    np.testing.assert_allclose(lines["p, layer chosen by its fit"].y, scan["p_selected"])
    assert lines["best layer"].hovertext == lines["correspondence index"].hovertext[1]
    assert list(lines["best layer"].x) == [1] and "Best at layer 1" in figure.layout.title.subtitle.text
    assert figure.layout.yaxis2.type == "log"
    low, high = figure.layout.yaxis2.range
    assert low < np.log10(scan["p"].min()) and high > 0
