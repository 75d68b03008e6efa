"""Colours of figures: told apart by every kind of sight, readable on white and on dark pages; figures as files."""

import json
import re
from typing import Any

import numpy as np
import plotly.io
import pytest
from drawn import every_figure, figures, planted

from workbench.errors import WorkbenchError
from workbench.figures import style, themes
from workbench.values import VALUES, VALUES19, circular_steps

FIGURES = every_figure()
SIGHTS = {
    "full sight": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def rgb(colour: str, ground: str = "#ffffff") -> np.ndarray:
    """A colour as 0..1, laid over the ground where it is transparent."""
    if colour.startswith("rgba"):
        *own, alpha = (float(x) for x in re.findall(r"[\d.]+", colour))
        return alpha * np.array(own) / 255 + (1 - alpha) * rgb(ground)
    colour = {"white": "#ffffff"}.get(colour, colour)
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255


def linear(colour: str, ground: str = "#ffffff") -> np.ndarray:
    x = rgb(colour, ground)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def oklab(colour: str, sight: Any) -> np.ndarray:
    """A colour as eyes with `sight` (linear RGB to linear RGB) see it, in OKLab."""
    to_cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    seen = np.clip(np.array(sight) @ linear(colour), 0, 1)
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ seen)


def contrast(colour: str, ground: str) -> float:
    low, high = sorted(float(linear(c, ground) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground))
    return (high + 0.05) / (low + 0.05)


def in_dark(colour: str) -> str:
    return themes._exchanged(colour, 4.0)


# --- told apart ---


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_colours_of_values_are_told_apart_and_follow_the_circle(sight, theme):
    shown = [figures.COLOURS[v] if theme == "light" else in_dark(figures.COLOURS[v]) for v in VALUES]
    seen = np.array([oklab(colour, sight) for colour in shown])
    apart, steps = np.linalg.norm(seen[:, None] - seen, axis=2), circular_steps()
    assert apart[steps > 0].min() > 0.07
    assert apart[steps == 1].max() < apart[steps == 2].min()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_controls_are_told_apart(sight, theme):
    shown = [*figures.CONTROLS.values(), style.INK]
    seen = np.array([oklab(in_dark(c) if theme == "dark" else c, sight) for c in shown])
    apart = np.linalg.norm(seen[:, None] - seen, axis=2)[np.triu_indices(len(shown), 1)]
    assert apart.min() > 0.14, apart.round(3)


@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_people_and_marks_differ_from_the_mean(sight):
    people, mark, mean = (oklab(colour, sight) for colour in (style.HUMAN, style.MARK, style.INK))
    assert min(np.linalg.norm(people - mark), np.linalg.norm(people - mean), np.linalg.norm(mark - mean)) > 0.07


def test_the_nineteen_have_the_colours_of_the_ten():
    assert style.colour_of("power-resources") == style.COLOURS["power"]
    assert style.colour_of("face") == style.FAINT and len({style.colour_of(v) for v in VALUES19}) == 11


def test_readable_keeps_the_hue():
    for colour in (*figures.COLOURS.values(), *figures.METHODS):
        for ground in ("#ffffff", themes.GROUND):
            shown = style.readable(colour, ground)
            assert contrast(shown, ground) >= 3 and style.contrast(shown, ground) >= 3
            if contrast(colour, ground) >= 3:
                assert shown == colour
            before, after = (oklab(c, np.eye(3))[1:] for c in (colour, shown))
            assert before @ after > 0.98 * np.linalg.norm(before) * np.linalg.norm(after), (colour, shown)


# --- contrast, figure by figure ---


def texts(node: Any, inherited: str, own: bool = False) -> list[str]:
    """Colours of all text in a layout: of every font that sets one, and of those that inherit it."""
    if isinstance(node, list | tuple):
        return [colour for part in node for colour in texts(part, inherited, own)]
    if not isinstance(node, dict):
        return []
    found = [node["color"]] if own and "color" in node else [inherited]
    return found + [c for key, part in node.items() for c in texts(part, inherited, "font" in key)]


def marks(trace: Any) -> list[list[str]]:
    """Of every mark of a trace the colours it shows: its fill, its line."""
    trace = trace.to_plotly_json()
    if trace.get("hoverinfo") == "skip" or trace["type"] == "heatmap":
        return []  # decoration, such as bands, sectors, ellipses; heat maps are told by the numbers in their cells
    marker, found = trace.get("marker", {}), []
    outline = [marker["line"]["color"]] if marker.get("line", {}).get("width") and "color" in marker["line"] else []
    if trace["type"] == "box":
        return [[trace["fillcolor"], trace["line"]["color"]]]
    if trace["type"] == "bar" or "markers" in trace.get("mode", "markers"):
        fill = marker.get("color", trace.get("line", {}).get("color"))
        found += [[colour, *outline] for colour in ([fill] if isinstance(fill, str) else fill)]
    if trace.get("line", {}).get("color"):
        found.append([trace["line"]["color"]])
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_text_and_marks_stand_out(name, theme):
    figure = FIGURES[name] if theme == "light" else figures.dark(FIGURES[name])
    layout = figure.layout.to_plotly_json()
    template = layout.pop("template")["layout"]
    ground = {"white": "#ffffff"}.get(template["paper_bgcolor"], template["paper_bgcolor"])
    ink = template["font"]["color"]
    weak = [colour for colour in texts([layout, template], ink) if contrast(colour, ground) < 4.5]
    assert not weak, f"text in {weak}"
    weak = [(trace.name, shown) for trace in figure.data for shown in marks(trace)
            if max(contrast(colour, ground) for colour in shown) < 3]  # fmt: skip
    assert not weak, f"marks in {weak}"
    scales = [layout.get("coloraxis", {}).get("colorscale")] if "coloraxis" in layout else []
    for _, cell in (stop for scale in scales for stop in scale):
        for trace in figure.data:
            if trace.type == "heatmap" and trace.texttemplate:
                assert contrast(trace.textfont.color, cell) >= 4.5, f"numbers in cells of {cell}"


# --- dark pages ---


@pytest.mark.parametrize("name", FIGURES)
def test_the_dark_figure_holds_the_same_data_in_other_colours(name):
    light = FIGURES[name]
    before, dark = light.to_json(), figures.dark(light)
    assert light.to_json() == before, "the figure itself was changed"
    strip = re.compile(r'"(rgba\([^"]*\)|#[0-9a-f]{6}|white)"')
    assert json.loads(strip.sub('"colour"', dark.to_json())) == json.loads(strip.sub('"colour"', before))
    assert dark.layout.template.layout.paper_bgcolor == themes.GROUND
    assert '"white"' not in dark.to_json() and style.INK not in dark.to_json()


def test_dark_leaves_words_alone_and_reads_a_callers_own_colours():
    figure = figures.circle_map(planted())
    figure.layout.title.text = "white"
    figure.layout.annotations[0].font.color = "#3b3b6d"
    dark = figures.dark(figure)
    assert dark.layout.title.text == "white"
    assert contrast(dark.layout.annotations[0].font.color, themes.GROUND) >= 4.5


# --- files ---


def test_figures_are_saved_and_read_back(tmp_path):
    figure = FIGURES["curves"]
    page = figures.save(figure, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and len(page) > 1e6, "plotly.js is not in it"
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page), "something is fetched"
    assert json.loads(plotly.io.read_json(figures.save(figure, tmp_path / "a.json")).to_json()) == json.loads(
        figure.to_json())  # fmt: skip
    with pytest.raises(WorkbenchError, match=r"ending '.gif'(.|\n)*\.svg"):
        figures.save(figure, tmp_path / "a.gif")


def test_without_kaleido_a_picture_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(themes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match="found: no kaleido|Found: no kaleido"):
        figures.save(FIGURES["curves"], tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


def test_pictures(tmp_path):
    pytest.importorskip("kaleido")
    try:
        svg = figures.save(FIGURES["circle"], tmp_path / "a.svg").read_text(encoding="utf-8")
    except WorkbenchError as error:
        pytest.skip(str(error))
    assert "<svg" in svg and "self-direction" in svg
    assert figures.save(FIGURES["circle"], tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
