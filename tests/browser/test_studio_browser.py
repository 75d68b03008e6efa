"""The studio in JupyterLab, by mouse and by keyboard."""

import json
import math
import re

import pytest
from labs import opened, wear

pytestmark = pytest.mark.browser

SETUP = """
import os
import torch
torch.set_num_threads(1)
import workbench as wb

model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded").groupby("value", sort=False).head(40)
probes = wb.fit_probes(model, pairs, C=1e-5, layers=[2, 3, 4], folds=2)
questions, unrelated = wb.load_questions("embedded"), wb.load_unrelated("embedded")
related = questions[questions["split"] == "calibration"]["question"][:40]
gate = wb.ProbeGate.fit(model, related, unrelated.query("not related")["prompt"].tolist()[:40], layer=2)
panel = wb.panels.studio(model, probes, gate, layers=[3], value="hedonism", target=.78)
print("kernel", os.getpid())
"""
NAME = "studio.ipynb"


@pytest.fixture(scope="module")
def page(lab, pages):
    page = opened(pages, lab, NAME, SETUP, "panel", "wb.panels.Studio(panel.state)")
    page.locator(".wb-studio").nth(1).locator(".wb-plot[data-turn]").first.wait_for()
    return page


def spot(panel, angle: float, radius: float) -> tuple[float, float]:
    """Where on the page the dial has this angle and radius."""
    dial = panel.locator(".wb-dial svg")
    dial.scroll_into_view_if_needed()
    box = dial.bounding_box()
    unit = min(box["width"] / 3.96, box["height"] / 2.6)
    return (
        box["x"] + box["width"] / 2 + unit * radius * math.cos(angle),
        box["y"] + box["height"] / 2 - unit * radius * math.sin(angle),
    )


def ended(panel, how: str = "done") -> None:
    panel.locator('[role="status"]', has_text=re.compile(f"^{how}$")).wait_for()


@pytest.mark.smoke
def test_the_dial_is_dragged_and_answers_on_release(page, panel, screens):
    told = panel.locator(".wb-dial-told")
    assert told.inner_text() == "ConVA, hedonism, P ≥ 0.78"
    page.mouse.move(*spot(panel, 2 * math.pi * 0.4, 0.5))  # anywhere: the handle comes
    page.mouse.down()
    panel.locator(".wb-words").wait_for()
    page.mouse.move(*spot(panel, 2 * math.pi * 0.4, 0.62), steps=6)
    panel.get_by_text("ConVA, power, P ≥ 0.9").first.wait_for()
    assert "press Run" in panel.inner_text(), "it answered before it was let go"
    page.mouse.up()
    ended(panel)
    cards = panel.locator(".wb-two .wb-card")
    assert cards.count() == 2 and cards.nth(1).inner_text().startswith("ConVA, power, P ≥ 0.9")
    assert all("Judge:" in card for card in cards.all_inner_texts())
    panel.locator(".wb-plot[aria-label*='Steering token by token']").first.wait_for()
    for theme in ("dark", "light"):
        wear(page, theme)
        ground = "rgb(21, 25, 30)" if theme == "dark" else "rgb(255, 255, 255)"
        page.wait_for_function(
            "ground => getComputedStyle(document.querySelector('.wb-studio .main-svg')).backgroundColor === ground",
            arg=ground,
        )
        panel.screenshot(path=screens / f"studio-{theme}.png")


def test_the_dial_by_keyboard(page, panel):
    hand = panel.get_by_role("slider", name="Steering A")
    hand.focus()
    page.keyboard.press("PageUp")
    panel.get_by_text("ConVA, security").first.wait_for()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "() => document.querySelector('.wb-hand').getAttribute('aria-valuetext').includes('conformity 11 %')"
    )
    page.keyboard.press("Home")
    panel.get_by_text("off, nothing is steered").first.wait_for()
    page.keyboard.press("End")
    panel.get_by_text("P ≥ 0.998").first.wait_for()
    ended(panel)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Steering A", "the focus was lost"
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    ended(panel)


def test_three_steerings_side_by_side_and_two_views(page, panel):
    panel.get_by_role("button", name="Add").click()
    panel.get_by_role("slider", name="Steering B").wait_for()
    panel.get_by_label("method").select_option("ICA")
    panel.get_by_role("button", name="Add").click()
    panel.get_by_role("slider", name="Steering C").wait_for()
    panel.get_by_label("method").select_option("CAA")
    panel.get_by_text("the mean difference").first.wait_for()
    panel.get_by_role("button", name="Run").click()
    ended(panel)
    titles = panel.locator(".wb-two h4").all_inner_texts()
    assert titles[0] == "Base" and [title[:6] for title in titles[1:]] == ["A: Con", "B: ICA", "C: CAA"]
    other = page.locator(".wb-studio").nth(1)
    for part in (".wb-two", ".wb-dial-told"):
        page.wait_for_function(
            "part => { const [a, b] = document.querySelectorAll(part); return a.innerText === b.innerText; }", arg=part
        )
    for _ in range(2):
        panel.get_by_role("button", name="Remove").click()
    other.get_by_role("slider", name="Steering B").wait_for(state="detached")


def test_a_run_is_cancelled(page, panel):
    panel.get_by_role("button", name="Run").click()
    panel.get_by_role("button", name="Cancel").click()
    ended(panel, "cancelled")
    said = panel.locator(".wb-two").inner_text()
    page.wait_for_timeout(500)
    assert panel.locator(".wb-two").inner_text() == said and "Judge" not in said


def test_what_goes_wrong_is_shown_and_hostile_text_is_harmless(page, panel):
    layers = panel.get_by_label("layers", exact=True)
    layers.fill("0-7")
    layers.press("Enter")
    alert = panel.get_by_role("alert").first
    alert.get_by_text("Layers [0, 1, 2, 3, 4, 5, 6, 7] were asked for.").wait_for()
    assert layers.input_value() == "3"
    prompt = panel.get_by_label("prompt", exact=True)
    kept = prompt.input_value()
    title = page.title()
    markup = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script> \u202e\u0007"
    prompt.fill(markup * 120)
    panel.get_by_text("too long by").first.wait_for()
    alert.get_by_text("of 128 tokens").wait_for()
    prompt.fill("<img src=x onerror=\"document.title='caught'\">?")
    panel.get_by_text("too long by").first.wait_for(state="detached")
    panel.get_by_role("button", name="Run").click()
    ended(panel)
    assert page.title() == title and panel.locator("img, script").count() == 0
    prompt.fill(kept)
    panel.get_by_text("settings have changed since").first.wait_for()


def test_a_reload_shows_the_same_and_nothing_heavy_is_saved(page, panel, lab):
    panel.get_by_role("button", name="Run").click()
    ended(panel)
    before = panel.locator(".wb-two").inner_text(), panel.locator(".wb-plot").first.get_attribute("aria-label")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    kept = (lab.root / NAME).read_text(encoding="utf-8")
    assert len(kept) < 200_000 and "widgets" not in json.loads(kept)["metadata"]
    page.reload()
    panel.locator(".wb-dial-told").wait_for()
    panel.locator(".wb-plot[data-turn]").first.wait_for()
    after = panel.locator(".wb-two").inner_text(), panel.locator(".wb-plot").first.get_attribute("aria-label")
    assert after == before
    panel.get_by_role("slider", name="Steering A").focus()
    page.keyboard.press("PageDown")
    ended(panel)


def test_after_a_restart_the_cells_make_it_anew(page, panel):
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    panel.locator(".wb-dial-told", has_text="ConVA, hedonism, P ≥ 0.78").wait_for()
    panel.get_by_role("button", name="Run").click()
    ended(panel)
