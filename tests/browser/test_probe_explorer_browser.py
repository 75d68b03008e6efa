"""The probe explorer in JupyterLab, by mouse and by keyboard."""

import re

import pytest
from labs import opened, wear

pytestmark = pytest.mark.browser

SETUP = """
import torch
torch.set_num_threads(1)
import workbench as wb
from workbench.panels.probe_explorer import ProbeExplorer, probe_explorer

model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded").groupby("value", sort=False).head(40)
probes = wb.fit_probes(model, pairs, C=1e-4, layers=[2, 5, 7], folds=2)
panel = probe_explorer(model, probes, value="power", layer=2)
"""
NAME = "explorer.ipynb"


@pytest.fixture(scope="module")
def page(lab, pages):
    page = opened(pages, lab, NAME, SETUP, "panel", "ProbeExplorer(panel.state)")
    page.locator(".wb-panel").nth(1).locator(".wb-plot[data-turn]").nth(1).wait_for()
    return page


def facts(panel) -> str:
    return panel.locator(".wb-claim").inner_text()


def filled(panel) -> None:
    panel.locator('[role="status"]', has_text=re.compile(r"^30 of 30 probes$")).wait_for()


@pytest.mark.smoke
def test_a_cell_is_clicked(page, panel, screens):
    assert facts(panel).startswith("power, layer 2, logistic, C = 0.0001: accuracy")
    grid = panel.locator(".wb-plot").first
    grid.scroll_into_view_if_needed()
    x, y = page.evaluate(
        """() => {
            const plot = document.querySelector('.wb-panel .js-plotly-plot'), box = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(2), box.top + yaxis._offset + yaxis.l2p(7)]; // 7, tradition
        }"""
    )
    page.mouse.click(x, y)
    panel.locator(".wb-claim", has_text="tradition, layer 7").wait_for()
    panel.locator(".wb-plot[aria-label^='tradition at layer 7']").wait_for()
    assert panel.get_by_label("value", exact=True).input_value() == "tradition"
    assert "Misjudged:" in panel.inner_text()
    for theme in ("dark", "light"):
        wear(page, theme)
        ground = "rgb(21, 25, 30)" if theme == "dark" else "rgb(255, 255, 255)"
        page.wait_for_function(
            "ground => [...document.querySelectorAll('.wb-panel .main-svg')].every("
            "svg => ['rgba(0, 0, 0, 0)', ground].includes(getComputedStyle(svg).backgroundColor))",
            arg=ground,
        )
        panel.screenshot(path=screens / f"probe-explorer-{theme}.png")


def test_by_keyboard(page, panel):
    panel.get_by_label("value", exact=True).focus()
    page.keyboard.press("Home")
    panel.locator(".wb-claim", has_text="self-direction, layer 7").wait_for()
    panel.locator(".noUi-handle, [role=slider]").first.focus()
    page.keyboard.press("ArrowLeft")
    panel.locator(".wb-claim", has_text="self-direction, layer 5").wait_for()
    panel.locator(".wb-plot[aria-label^='self-direction at layer 5']").wait_for()
    other = page.locator(".wb-panel").nth(1)
    other.locator(".wb-claim", has_text="self-direction, layer 5").wait_for()
    assert facts(other) == facts(panel)


def test_another_method_is_refitted_and_the_first_is_still_there(page, panel):
    before = facts(panel)
    panel.get_by_label("method").select_option("lda")
    panel.locator(".wb-claim", has_text="self-direction, layer 5, lda").wait_for()
    filled(panel)
    panel.get_by_text("C is for logistic only").wait_for()
    panel.locator(".wb-plot[aria-label*='lda']").first.wait_for()
    panel.get_by_label("method").select_option("logistic")
    panel.locator(".wb-claim", has_text=before[:60]).wait_for()
    slider = panel.locator(".noUi-handle, [role=slider]").nth(1)
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    panel.get_by_text("C = 0.000316").first.wait_for()
    filled(panel)
    panel.locator(".wb-plot[aria-label*='C = 0.000316']").first.wait_for()


def test_a_text_is_read_token_by_token(page, panel):
    text = panel.get_by_label("text", exact=True)
    text.fill("I like choosing my own path.")
    panel.locator(".wb-token").nth(6).wait_for()
    panel.locator(".wb-token", has_text="choosing").wait_for()
    tokens = [token.split("\n")[0].strip() for token in panel.locator(".wb-token").all_inner_texts()]
    assert tokens[-2:] == ["path", "."] and "tested for" in panel.inner_text()
    title = page.title()
    text.fill("<img src=x onerror=\"document.title='caught'\">" * 40)
    panel.get_by_role("alert").get_by_text("of 128 tokens").wait_for()
    panel.get_by_text("This text was not read.").wait_for()
    text.fill("")
    panel.get_by_text("Type a text").wait_for()
    assert page.title() == title and panel.locator("img, script").count() == 0
    text.fill("I like choosing my own path.")
    panel.locator(".wb-token").nth(6).wait_for()


def test_a_reload_shows_the_same(page, panel):
    before = facts(panel), [plot.get_attribute("aria-label") for plot in panel.locator(".wb-plot").all()]
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.reload()
    panel.locator(".wb-plot[data-turn]").nth(1).wait_for()
    assert before == (facts(panel), [plot.get_attribute("aria-label") for plot in panel.locator(".wb-plot").all()])
