"""The tour in JupyterLab, and its HTML page opened from disk without network."""

import re

import nbformat
import pytest
from labs import errors, run_all
from nbformat.v4 import new_code_cell, new_notebook
from test_notebooks import NOTEBOOKS, executed, prepared

from workbench import cli

pytestmark = pytest.mark.browser

TOUR = NOTEBOOKS / cli.TOUR
needs_tour = pytest.mark.skipif(not TOUR.is_file(), reason="there is no tour notebook")

# A figure is drawn when plotly made its SVG and at least one trace holds data. Answers which ones are not.
PLOTS = ".js-plotly-plot:has(svg.main-svg)"
UNDRAWN = """() => [...document.querySelectorAll('.js-plotly-plot, .plotly-graph-div')].filter(plot =>
    !plot.querySelector('svg.main-svg') || !(plot._fullData || []).some(trace => trace.visible === true)
).map(plot => plot.layout?.title?.text || plot.id || 'a figure without title')"""
ALL_DRAWN = f"document.querySelector('.js-plotly-plot') && !({UNDRAWN})().length"


def figures(notebook: nbformat.NotebookNode) -> int:
    """How many plotly figures the cells show, FigureWidgets not counted."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(cli.PLOTLY in output.get("data", {}) for output in outputs)


def open_offline(new_page, path):
    """The page at `path` in a context without network, and what it complained of or asked the network for."""
    complaints: list[str] = []
    page = new_page(offline=True)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None
    )
    page.goto(path.as_uri())
    return page, complaints


@needs_tour
@pytest.mark.notebook
def test_tour_page_draws_every_figure_without_network(executable, tmp_path, screens, request):
    notebook = executed(TOUR)
    path = tmp_path / "tour.html"
    path.write_text(cli.page(notebook, "Value workbench"), encoding="utf-8")
    page, complaints = open_offline(request.getfixturevalue("new_page"), path)
    plots = page.locator(PLOTS)
    assert plots.count() >= figures(notebook) > 0
    assert page.evaluate(UNDRAWN) == []
    assert complaints == []
    page.screenshot(path=screens / "tour.png", full_page=True)
    for number in range(plots.count()):
        plots.nth(number).screenshot(path=screens / f"tour-figure-{number}.png")


def test_the_page_check_sees_figures_and_figure_widgets(executable, tmp_path, request):
    sources = [
        "import numpy as np, plotly.graph_objects as go\ngo.Figure(go.Heatmap(z=np.eye(3)))",
        "go.FigureWidget(go.Scatter(y=np.linspace(0, 1, 5)), layout_title_text='live')",
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    cli.execute(notebook, tmp_path)
    path = tmp_path / "page.html"
    path.write_text(cli.page(notebook, "page"), encoding="utf-8")
    page, complaints = open_offline(new_page := request.getfixturevalue("new_page"), path)
    assert (figures(notebook), page.locator(PLOTS).count()) == (1, 2)
    assert page.evaluate(UNDRAWN) == []
    assert complaints == []

    # a figure widget whose arrays were lost has a frame and no data; without plotly.js there is nothing
    for model in notebook.metadata.widgets[cli.WIDGET_STATE]["state"].values():
        model.pop("buffers", None)
    html = cli.page(notebook, "page")
    path.write_text(html, encoding="utf-8")
    assert open_offline(new_page, path)[0].evaluate(UNDRAWN) == ["live"]
    path.write_text(
        re.sub("<script>.*?plotly.js v.*?</script>", "", html, count=1, flags=re.DOTALL), encoding="utf-8"
    )
    page, complaints = open_offline(new_page, path)
    assert len(page.evaluate(UNDRAWN)) == 2 and "Plotly is not defined" in complaints[0]


@needs_tour
@pytest.mark.notebook
def test_tour_runs_through_in_jupyterlab(lab, new_page, screens):
    page = run_all(new_page, lab, prepared(TOUR), cli.TOUR)
    assert errors(page) == []
    page.wait_for_function(ALL_DRAWN)
    page.locator(".jp-RenderedPlotly, .js-plotly-plot").first.scroll_into_view_if_needed()
    page.screenshot(path=screens / "lab.png")


def test_a_failing_cell_is_seen_in_jupyterlab(lab, new_page):
    cells = [
        new_code_cell("import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1, 2]))"),
        new_code_cell("1 / 0"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    page = run_all(new_page, lab, new_notebook(cells=cells, metadata=kernel), "failing.ipynb")
    assert errors(page) == ["ZeroDivisionError: division by zero"]
    page.wait_for_function(ALL_DRAWN)
