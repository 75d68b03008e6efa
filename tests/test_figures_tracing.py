"""The strip of steered tokens and the curve of a tuning, as data."""

import numpy as np
import pytest
from drawn import figures, known_curve, known_trace

from workbench.errors import WorkbenchError


def named(fig):
    return {trace.name: trace for trace in fig.data if trace.name}


def test_every_token_has_its_edit_at_every_layer_and_none_where_nothing_was_added():
    fig = figures.steering_strip(known_trace(), 1, target=0.94)
    heat = fig.data[0]
    assert list(heat.y) == ["2", "4"] and heat.z.shape == (2, 7)
    assert np.isnan(heat.z[:, [0, 3, 6]]).all() and heat.z[:, 1].tolist() == pytest.approx([0.2, 0.4])
    assert "edit 21" in heat.hovertext[0][1] and "20.0% of the residual" in heat.hovertext[0][1]
    (axis,) = [axis for axis in (fig.layout.xaxis, fig.layout.xaxis2, fig.layout.xaxis3) if axis.ticktext]
    assert axis.ticktext[1] == "w1" and "<a" not in axis.ticktext[2]
    assert named(fig)["P before layer 2"].y[3] == pytest.approx(0.35)
    assert named(fig)["P after layer 4"].y[0] == pytest.approx(0.94)
    assert named(fig)["KL"].y.tolist() == pytest.approx([0.1 * k for k in range(7)])
    assert "the gate was open (filled: open)" in fig.layout.title.subtitle.text
    (gate,) = [trace for trace in fig.data if trace.y is not None and trace.y[0] == "gate"]
    assert set(gate.marker.symbol) == {"circle"} and "open" in gate.hovertext[0]
    assert figures.steering_strip(known_trace(), 1, name="<b>A").layout.title.text.endswith(": &lt;b&gt;A")


def test_what_the_trace_lacks_is_left_out():
    trace = known_trace().drop(columns=["kl", "share"]).assign(p_before=np.nan, p_after=np.nan, gate=np.nan)
    fig = figures.steering_strip(trace, 1)
    assert len(fig.data) == 1 and fig.data[0].z[0, 1] == 21.0
    assert "no gate" in fig.layout.title.subtitle.text and "units of the residual" in fig.layout.title.subtitle.text
    shut = figures.steering_strip(known_trace().assign(open=False), 1)
    assert "stayed shut" in shut.layout.title.subtitle.text


def test_the_first_tokens_are_shown():
    fig = figures.steering_strip(known_trace(), 1, limit=3)
    assert fig.data[0].z.shape == (2, 3) and len(named(fig)["KL"].y) == 3


def test_a_row_or_table_without_steering_is_refused():
    with pytest.raises(WorkbenchError, match="row 0 .*\n.*nothing steered it.*\nAllowed: rows 1"):
        figures.steering_strip(known_trace(), 0)
    with pytest.raises(WorkbenchError, match="without eps"):
        figures.steering_strip(known_trace().drop(columns="eps"), 1)


def test_the_curve_shows_every_setting_in_order_and_rings_the_chosen():
    fig = figures.dose_response(known_curve(), labels={"2": "two"})
    power, fluency = fig.data[0], fig.data[-1]
    assert [trace.name for trace in fig.data] == ["power", "tradition", "chosen", "FR over all values"]
    assert list(power.x)[2:] == ["two", "3"] and "<a" not in power.x[1]
    assert power.y.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert power.error_y.array[0] == pytest.approx(known_curve()["high"][0] - 0.1)
    ring = named(fig)["chosen"]
    assert list(ring.x) == ["two", "two"] and ring.y.tolist() == pytest.approx([0.5, 0.55])
    assert fluency.y.tolist() == pytest.approx([1, 0.95, 0.9, 0.85]) and "20 answers" in power.hovertext[0]
