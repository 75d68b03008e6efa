"""The gate tuner in JupyterLab, by mouse and by keyboard."""

import pytest
from labs import opened, wear

pytestmark = pytest.mark.browser

SETUP = """
import torch
torch.set_num_threads(1)
import workbench as wb
from workbench.panels.gate_tuner import GateTuner, gate_tuner

model = wb.load_model("embedded:circle")
questions, unrelated = wb.load_questions("embedded"), wb.load_unrelated("embedded")
related = questions[questions["split"] == "calibration"]["question"][:60]
plain = unrelated[~unrelated["related"] & (unrelated["split"] == "calibration")].groupby("kind").head(15)
gate = wb.ProbeGate.fit(model, related, plain, layer=1)
kinds = unrelated.groupby(["kind", "split"]).head(15)
panel = gate_tuner(gate, kinds=kinds)
"""
NAME = "tuner.ipynb"


@pytest.fixture(scope="module")
def page(lab, pages):
    cells = SETUP, "panel", "GateTuner(panel.state)", 'f"{panel.state.tuned().threshold:.4g}"'
    page = opened(pages, lab, NAME, *cells, height=1700)
    page.locator(".wb-panel").nth(1).locator(".wb-plot[data-turn]").nth(1).wait_for()
    return page


def handle_of(panel):
    return panel.get_by_role("slider", name="threshold of the gate")


def place(panel) -> float:
    """Where the threshold stands: its logit."""
    return float(handle_of(panel).get_attribute("aria-valuenow"))


def said(panel) -> str:
    return handle_of(panel).get_attribute("aria-valuetext")


def settled(page, panel, than: str) -> float:
    """The place of the threshold once summary and handle have said the same, and not this, for half a second."""
    page.evaluate("window.__settled = null")
    page.wait_for_function(
        """than => {
            const told = document.querySelector('.wb-panel .wb-claim b').textContent, was = window.__settled;
            const same = told !== than && document.querySelector('.wb-panel .wb-handle').ariaValueText === told;
            if (!same || was?.told !== told) window.__settled = same ? { told, at: performance.now() } : null;
            return same && was?.told === told && performance.now() - was.at > 500;
        }""",
        arg=than,
    )
    return place(panel)


@pytest.mark.smoke
def test_the_handle_is_dragged(page, panel, screens):
    own, handle = said(panel), handle_of(panel)
    assert "No prompt changes side" in panel.inner_text()
    handle.scroll_into_view_if_needed()
    box, plot = handle.bounding_box(), panel.locator(".wb-plot").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 120
    drawn = panel.locator(".wb-plot").first.get_attribute("data-turn")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(plot["x"] + 0.86 * plot["width"], y, steps=12)
    page.mouse.up()
    assert settled(page, panel, own) > 7
    text = panel.inner_text()
    assert "set by hand" in text and "now closed" in text and "prompts change side" in text
    assert panel.locator(".wb-plot").first.get_attribute("data-turn") == drawn, "the histogram was drawn anew"
    assert panel.get_by_label("set by", exact=True).input_value() == "set by hand"
    typed = "Should Mira move to the city?\nWhat is two and three?\nI like choosing my own path."
    panel.get_by_label("prompts", exact=True).fill(typed)
    panel.locator("td", has_text="What is two and three?").last.wait_for()
    panel.locator(".wb-table", has_text="typed prompt").locator("tr").nth(3).wait_for()
    page.wait_for_function("() => document.querySelectorAll('.wb-panel .textpoint text').length >= 3")
    for theme in ("dark", "light"):
        wear(page, theme)
        ground = "rgb(21, 25, 30)" if theme == "dark" else "rgb(255, 255, 255)"
        page.wait_for_function(
            "ground => [...document.querySelectorAll('.wb-panel .main-svg')].every("
            "svg => ['rgba(0, 0, 0, 0)', ground].includes(getComputedStyle(svg).backgroundColor))",
            arg=ground,
        )
        panel.screenshot(path=screens / f"gate-tuner-{theme}.png")


def test_by_keyboard(page, panel):
    before, told = place(panel), said(panel)
    handle_of(panel).focus()
    page.keyboard.press("ArrowLeft")
    assert settled(page, panel, told) == pytest.approx(before - 0.05, abs=1e-6)
    told = said(panel)
    page.keyboard.press("End")
    settled(page, panel, told)
    assert said(panel) == "1"
    assert "0 of 60 related prompts" in panel.locator(".wb-claim").inner_text()
    page.keyboard.press("Home")
    lowest = settled(page, panel, "1")
    assert said(panel) == "0"
    assert "60 of 60 related prompts" in panel.locator(".wb-claim").inner_text()
    page.keyboard.press("PageUp")
    assert settled(page, panel, "0") == pytest.approx(lowest + 0.5, abs=1e-6)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("threshold of the gate")


def test_a_rule_sets_it_and_two_views_stay_equal(page, panel):
    before, other = said(panel), page.locator(".wb-panel").nth(1)
    panel.get_by_label("set by", exact=True).select_option("highest J = TPR − FPR")
    youden = settled(page, panel, before)
    panel.locator(".wb-claim", has_text="highest J").wait_for()
    other.locator(".wb-claim", has_text=panel.locator(".wb-claim").inner_text()[:60]).wait_for()
    page.wait_for_function(
        """() => {
            const places = [...document.querySelectorAll('.wb-handle:not([hidden])')].map(handle => handle.style.left);
            return places.length === 2 && places[0] === places[1];
        }"""
    )
    panel.get_by_label("set by", exact=True).select_option("at most a share of unrelated")
    rate = panel.get_by_label("share, at most", exact=True)
    rate.fill("0.5")
    rate.press("Enter")
    panel.locator(".wb-claim", has_text="at most 0.5 of unrelated").wait_for()
    page.wait_for_function("at => Number(document.querySelector('.wb-handle').ariaValueNow) < at", arg=youden)


def test_typed_prompts_change_sides_with_the_threshold(page, panel):
    typed, table = panel.get_by_label("prompts", exact=True), panel.locator(".wb-table", has_text="typed prompt")
    typed.fill("Should Mira move to the city?")
    row = table.locator("tr").nth(1)
    row.get_by_text("Should Mira move to the city?").wait_for()
    handle_of(panel).focus()
    for key, side in (("End", "closed"), ("Home", "open")):
        page.keyboard.press(key)
        row.get_by_text(side, exact=True).wait_for()
    title = page.title()
    typed.fill("<img src=x onerror=\"document.title='caught'\">" * 40)
    panel.get_by_role("alert").get_by_text("of 128 tokens").wait_for()
    typed.fill("<img src=x onerror=\"document.title='caught'\">?")
    row.get_by_text("<img src=x").wait_for()
    assert page.title() == title and panel.locator("img, script").count() == 0


def test_a_reload_shows_the_same(page, panel):
    before = panel.locator(".wb-claim").inner_text()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.reload()
    panel.locator(".wb-plot[data-turn]").nth(1).wait_for()
    assert panel.locator(".wb-claim").inner_text() == before
    before = said(panel)
    handle_of(panel).focus()
    page.keyboard.press("PageUp")
    settled(page, panel, before)
