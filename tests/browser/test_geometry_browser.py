"""The geometry in JupyterLab, by mouse and by keyboard."""

import re

import pytest
from labs import opened, wear

pytestmark = pytest.mark.browser

SETUP = """
import sys
import torch
torch.set_num_threads(1)
import workbench as wb
from workbench.panels.geometry import Geometry, geometry

sys.modules[Geometry.__module__].TIMES = 60  # a thousand takes minutes
model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded").groupby("value", sort=False).head(40)
probes = wb.fit_probes(model, pairs, layers=[1, 3, 5], folds=2)
panel = geometry(probes, words=True, layer=1)
"""
NAME = "geometry.ipynb"
CLAIMS = "fit = wb.geometry.circumplex_fit(probes, layer={}); print(fit.claim())"


@pytest.fixture(scope="module")
def page(lab, pages):
    cells = [SETUP, "panel", "Geometry(panel.state)", *(CLAIMS.format(layer) for layer in (1, 3, 5))]
    page = opened(pages, lab, NAME, *cells, width=1700)
    page.locator(".wb-panel").nth(1).locator(".wb-plot[data-turn]").nth(2).wait_for()
    return page


def claim(panel) -> str:
    return panel.locator(".wb-claim").first.inner_text()


def printed(page) -> list[str]:
    """The claims that cells of the notebook print, by layer."""
    texts = page.locator(".jp-OutputArea-output pre").all_inner_texts()
    return [text.strip() for text in texts if "By centred" in text]


@pytest.mark.smoke
def test_the_layer_is_moved_by_keyboard_and_all_follow(page, panel, screens):
    assert claim(panel) == f"What may be claimed. {printed(page)[0]}"
    panel.get_by_text("Is that just lexical?").wait_for()
    handle = panel.locator(".noUi-handle").first
    handle.focus()
    for layer, said in ((3, printed(page)[1]), (5, printed(page)[2])):
        page.keyboard.press("ArrowRight")
        panel.locator(".wb-claim", has_text=f"layer {layer})").wait_for()
        assert claim(panel) == f"What may be claimed. {said}"
        panel.locator(f".wb-plot[aria-label*='layer {layer}']").nth(1).wait_for()  # circle and null
    page.keyboard.press("ArrowLeft")
    panel.locator(".wb-claim", has_text="layer 3)").wait_for()
    assert page.evaluate("document.activeElement.classList.contains('noUi-handle')"), "the focus was lost"
    for theme in ("dark", "light"):
        wear(page, theme)
        ground = "rgb(21, 25, 30)" if theme == "dark" else "rgb(255, 255, 255)"
        page.wait_for_function(
            "ground => [...document.querySelectorAll('.wb-panel .main-svg')].every("
            "plot => ['rgba(0, 0, 0, 0)', ground].includes(getComputedStyle(plot).backgroundColor))",
            arg=ground,
        )
        panel.screenshot(path=screens / f"geometry-{theme}.png")


def test_the_layer_is_dragged_by_mouse(page, panel):
    handle = panel.locator(".noUi-handle").first
    box, track = handle.bounding_box(), panel.locator(".noUi-base").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for share in (0.1, 0.9, 0.4, 1.0, 0.0):
        page.mouse.move(track["x"] + share * track["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    panel.locator(".wb-claim", has_text="layer 1)").wait_for()
    assert claim(panel) == f"What may be claimed. {printed(page)[0]}"


def test_choices_change_what_is_shown_in_both_views(page, panel):
    other = page.locator(".wb-panel").nth(1)
    panel.get_by_label("method", exact=True).select_option("mean_difference")
    panel.locator(".wb-claim", has_text="mean_difference, layer").first.wait_for()
    panel.get_by_label("layout", exact=True).select_option("nine wedges")
    panel.get_by_label("null of", exact=True).select_option("Procrustes R²")
    panel.get_by_role("button", name="raw").click()
    panel.locator(".wb-claim", has_text=re.compile("By raw cosine .* on nine wedges")).first.wait_for()
    panel.locator(".wb-plot[aria-label^='Procrustes R² under every relabelling']").wait_for()
    other.locator(".wb-plot[aria-label^='Procrustes R² under every relabelling']").wait_for()
    assert claim(other) == claim(panel)
    for name in ("method", "layout", "null of", "order"):
        assert other.get_by_label(name, exact=True).input_value() == panel.get_by_label(name, exact=True).input_value()
    page.get_by_role("button", name="centred").last.click()  # in the other view
    panel.locator(".wb-claim", has_text="By centred cosine").first.wait_for()
    panel.get_by_label("layout", exact=True).select_option("equal steps")


def test_pairs_are_resampled_and_it_can_be_cancelled(page, panel):
    panel.get_by_label("method", exact=True).select_option("logistic (as fitted)")
    panel.locator(".wb-claim", has_text="logistic, layer").first.wait_for()
    again = panel.get_by_role("button", name="Resample 60 times")
    again.click()
    panel.locator('[role="status"]', has_text="Resampling: self-direction (1 of 10 values)").wait_for()
    panel.get_by_role("button", name="Cancel").click()
    panel.locator('button:has-text("Resample"):not([disabled])').wait_for()
    assert "Ellipses" not in (panel.locator(".wb-plot").first.get_attribute("aria-label") or "")
    panel.get_by_label("method", exact=True).select_option("mean_difference")  # whose fits take no time
    again.click()
    panel.locator('[role="status"]', has_text="60 resamples of the pairs").wait_for()
    panel.locator(".wb-plot[aria-label*='Ellipses: 95 % over resampled pairs']").wait_for()
    panel.locator(".wb-claim", has_text=re.compile(r"correspondence index [\d.]+ \[[\d.]+, [\d.]+\]")).first.wait_for()
    panel.locator(".wb-claim", has_text=re.compile(r"difference [\d.]+ \[[\d.-]+, [\d.]+\]")).wait_for()
