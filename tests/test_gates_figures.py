"""Figures of gates: the curves are the gate's own, the marks are where its threshold is."""

import numpy as np
import pandas as pd
import pytest
from drawn import EVIL, figures, known_gate
from scipy.special import logit

from workbench.errors import WorkbenchError
from workbench.gates import CosineGate, DetectorGate
from workbench.rates import wilson


@pytest.fixture
def gate():
    return known_gate()


def cosine_gate():
    rng, related = np.random.default_rng(0), np.repeat([True, False], 20)
    oof = pd.DataFrame({"prompt": map(str, range(40)), "related": related, "score": rng.uniform(-0.2, 0.3, 40)})
    return CosineGate(3, np.ones(4, np.float32), 0.1, "as given", oof)


def test_the_roc_and_precision_recall_are_the_gates_curve(gate):
    figure, curve = figures.gate_roc(gate), gate.curve()
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.line.width == 2.5]
    np.testing.assert_allclose(lines[0].x, curve["false_positive"])
    np.testing.assert_allclose(lines[0].y, curve["open"])
    told = curve.dropna()
    np.testing.assert_allclose(lines[1].x, told["open"])
    np.testing.assert_allclose(lines[1].y, told["precision"])
    assert lines[1].line.shape == "vh", "a precision belongs to the recall before it, as in average precision"
    bands = [trace for trace in figure.data if trace.line.width == 0]
    np.testing.assert_allclose(bands[0].y, curve["open_high"])
    np.testing.assert_allclose(bands[1].y, curve["open_low"])
    np.testing.assert_allclose(bands[3].y, told["precision_low"])
    row = curve.iloc[40]
    low, high = wilson(row["open"], 30)
    assert f"related prompts that open it: {row['open']:.3f}, {low:.3f} to {high:.3f}" in lines[0].hovertext[40]


def test_the_chosen_threshold_is_marked_where_the_gates_rates_are(gate):
    for chosen in (gate, gate.calibrate(0.0), gate.calibrate(by="f1"), gate.calibrate(by="youden")):
        figure, rates = figures.gate_roc(chosen), chosen.rates
        roc, pr = [trace for trace in figure.data if trace.mode == "markers"]
        assert (roc.x[0], roc.y[0], pr.x[0]) == (rates["false_positive"], rates["open"], rates["open"])
        hits, alarms = 30 * rates["open"], 60 * rates["false_positive"]
        assert pr.y[0] == pytest.approx(hits / (hits + alarms))
        low, high = wilson(rates["open"], 30)
        assert roc.y[0] + roc.error_y.array[0] == pytest.approx(high)
        assert roc.y[0] - roc.error_y.arrayminus[0] == pytest.approx(low)
        low, high = chosen.intervals["auroc"]
        said = figure.layout.title.subtitle.text.replace("<br>", " ")
        assert f"AUROC {rates['auroc']:.3f} ({low:.3f} to {high:.3f})" in said and chosen.criterion in said
    chance = [trace.y for trace in figure.data if trace.line.dash == "dash"]
    assert chance == [(0, 1), (pytest.approx(1 / 3),) * 2]


def test_a_cosine_is_drawn_as_it_is_and_a_probability_in_logits(gate):
    plain, figure = cosine_gate(), figures.gate_histogram(cosine_gate())
    assert figure.layout.shapes[0].x0 == 0.1 and "cosine" in figure.layout.xaxis.title.text
    assert all(sum(trace.y) == pytest.approx(1) for trace in figure.data), "a prompt fell outside the bins"
    assert figures.gate_histogram(gate).layout.shapes[0].x0 == pytest.approx(logit(0.25))
    assert "layer 3, last prompt token" in figure.layout.title.subtitle.text
    tokens = CosineGate(3, plain.weight, 0.1, "as given", plain.oof.assign(position=0))
    assert "layer 3, each token" in figures.gate_roc(tokens).layout.title.subtitle.text


def test_a_detector_reads_the_question_and_its_score_is_no_probability_of_the_gate(gate):
    detector = DetectorGate(None, "power", oof=gate.oof)
    figure = figures.gate_histogram(detector)
    assert "score on a logit scale" in figure.layout.xaxis.title.text
    assert figure.layout.title.subtitle.text.startswith("A text classifier on the bare question.")
    assert "Jin et al. 2025, g0" in figures.gate_roc(detector).layout.title.subtitle.text


def test_what_is_easily_mistaken_stands_next_to_the_line_with_the_share_that_opens(gate):
    kinds = ["hard"] * 10 + ["technical choice"] * 10 + ["zoo"] * 30 + [EVIL] * 10
    table = pd.DataFrame({"prompt": gate.oof["prompt"][30:], "kind": kinds})
    new = pd.DataFrame({"prompt": list("abcd"), "kind": "value-laden", "related": True, "score": [0.1, 0.2, 0.3, 0.9]})
    figure = figures.gate_histogram(gate, pd.concat([table, new]))
    assert list(figure.layout.yaxis2.ticktext) == [
        f"{figures.escape(EVIL, 30)}, 10", "zoo, 30", "unrelated dilemmas, 10", "hard unrelated, 10",
        "value-laden, no dilemma, 4", "dilemmas, 30"]  # fmt: skip
    shares = {note.y: note for note in figure.layout.annotations[1:]}
    assert shares[4].text == "50%" and shares[5].text == f"{gate.rates['open']:.0%}"
    low, high = wilson(0.5, 4)
    assert f"{low:.3f} to {high:.3f}" in shares[4].hovertext
    bars = [trace.name for trace in figure.data[:2]]
    assert bars == ["unrelated, n = 60", "related, n = 30"], "what was not out of fold is not in the histogram"
    dots = [trace for trace in figure.data if trace.type == "scatter"]
    assert [len(trace.x) for trace in dots] == [10, 30, 10, 10, 4, 30]
    np.testing.assert_allclose(dots[4].x, logit([0.1, 0.2, 0.3, 0.9]))


def test_a_gate_that_was_never_tried_has_no_figure():
    gate = DetectorGate(None, "power")
    for draw in (figures.gate_histogram, figures.gate_roc):
        with pytest.raises(WorkbenchError, match="never tried on any"):
            draw(gate)
