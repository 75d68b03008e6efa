"""The gate tuner in JupyterLab, by mouse and by keyboard."""

import re

import pytest
from labs import Watch, errors, notebook_of, run_all, wear

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
    made = {}

    def new_page():
        made["page"] = pages(viewport={"width": 1500, "height": 1700})
        made["watch"] = Watch(made["page"], lab.url)
        return made["page"]

    cells = SETUP, "panel", "GateTuner(panel.state)", 'f"{panel.state.tuned().threshold:.4g}"'
    page = run_all(new_page, lab, notebook_of(*cells), NAME)
    assert errors(page) == []
    page.watch = made["watch"]
    page.locator(".wb-panel").nth(1).locator(".wb-plot[data-turn]").nth(1).wait_for()
    return page


@pytest.fixture
def panel(page):
    return page.locator(".wb-panel").first


@pytest.fixture(autouse=True)
def quiet(page):
    yield
    assert page.watch.complaints == [] and page.watch.abroad == []


def threshold(panel) -> float:
    """As the summary tells it."""
    return float(re.search(r"Open where P\(related\) > (\S+)", panel.locator(".wb-claim").inner_text())[1])


def settled(page, panel, than: float) -> float:
    """The threshold once it is another one, and the handle says so."""
    page.wait_for_function(
        """than => {
            const told = document.querySelector('.wb-panel .wb-claim').textContent.match(/P\\(related\\) > (\\S+)/)[1];
            const handle = document.querySelector('.wb-panel .wb-handle');
            return Number(told) !== than && handle.getAttribute('aria-valuetext') === told;
        }""",
        arg=than,
    )
    return threshold(panel)


@pytest.mark.smoke
def test_the_handle_is_dragged(page, panel, screens):
    own, handle = threshold(panel), panel.get_by_role("slider", name="threshold of the gate")
    assert "No prompt changes side" in panel.inner_text()
    handle.scroll_into_view_if_needed()
    box, plot = handle.bounding_box(), panel.locator(".wb-plot").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 120
    drawn = panel.locator(".wb-plot").first.get_attribute("data-turn")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(plot["x"] + 0.86 * plot["width"], y, steps=12)
    page.mouse.up()
    higher = settled(page, panel, own)
    assert higher > 0.99 > own
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
    handle = panel.get_by_role("slider", name="threshold of the gate")
    before = threshold(panel)
    handle.focus()
    page.keyboard.press("ArrowLeft")
    lower = settled(page, panel, before)
    assert lower < before
    page.keyboard.press("End")
    assert settled(page, panel, lower) == 1.0
    assert "0 of 60 related prompts" in panel.locator(".wb-claim").inner_text()
    page.keyboard.press("Home")
    assert settled(page, panel, 1.0) == 0.0
    assert "60 of 60 related prompts" in panel.locator(".wb-claim").inner_text()
    page.keyboard.press("PageUp")
    assert 0 < settled(page, panel, 0.0) < 0.01
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("threshold of the gate")


def test_a_rule_sets_it_and_two_views_stay_equal(page, panel):
    before, other = threshold(panel), page.locator(".wb-panel").nth(1)
    panel.get_by_label("set by", exact=True).select_option("highest J = TPR − FPR")
    youden = settled(page, panel, before)
    assert before < youden < 1
    panel.locator(".wb-claim", has_text="highest J").wait_for()
    other.locator(".wb-claim", has_text=panel.locator(".wb-claim").inner_text()[:60]).wait_for()
    told = "document.querySelectorAll('.wb-handle')[{}].style.left"
    page.wait_for_function(f"() => {told.format(0)} === {told.format(1)}")
    panel.get_by_label("set by", exact=True).select_option("at most a share of unrelated")
    rate = panel.get_by_label("share, at most", exact=True)
    rate.fill("0.5")
    rate.press("Enter")
    panel.locator(".wb-claim", has_text="at most 0.5 of unrelated").wait_for()
    assert settled(page, panel, youden) < youden


def test_typed_prompts_change_sides_with_the_threshold(page, panel):
    typed, table = panel.get_by_label("prompts", exact=True), panel.locator(".wb-table", has_text="typed prompt")
    typed.fill("Should Mira move to the city?")
    row = table.locator("tr").nth(1)
    row.get_by_text("Should Mira move to the city?").wait_for()
    handle = panel.get_by_role("slider", name="threshold of the gate")
    handle.focus()
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
    handle = panel.get_by_role("slider", name="threshold of the gate")
    handle.focus()
    page.keyboard.press("PageUp")
    settled(page, panel, 0.0)
