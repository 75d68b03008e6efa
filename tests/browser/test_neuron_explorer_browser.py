"""The neuron explorer in JupyterLab, by mouse and by keyboard."""

import re

import pytest
from labs import opened, wear

pytestmark = pytest.mark.browser

SETUP = """
import torch
torch.set_num_threads(1)
import workbench as wb
from workbench.panels.neuron_explorer import NeuronExplorer, neuron_explorer

model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded").groupby("value", sort=False).head(40)
probes = wb.fit_probes(model, pairs, layers=[0, 2], folds=2)
panel = neuron_explorer(model, probes, value="power")
"""
NAME = "neurons.ipynb"


@pytest.fixture(scope="module")
def page(lab, pages):
    page = opened(pages, lab, NAME, SETUP, "panel", "NeuronExplorer(panel.state)", width=1560)
    for k in range(2):
        page.locator(".wb-panel").nth(k).locator(".wb-plot[aria-label*='Jaccard index']").wait_for()
    return page


def mark(page, point: int) -> tuple[float, float]:
    """Where on the page a neuron's mark is."""
    return page.evaluate(
        """point => {
            const plot = document.querySelector('.wb-panel .js-plotly-plot');
            plot.scrollIntoView({block: 'center'});
            const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout, { x, y } = plot._fullData[0];
            return [box.left + xaxis._offset + xaxis.d2p(x[point]), box.top + yaxis._offset + yaxis.d2p(y[point])];
        }""",
        point,
    )


def title(panel) -> str:
    return panel.locator(".wb-card h4", has_text="neuron").first.inner_text()


@pytest.mark.smoke
def test_a_neuron_is_clicked(page, panel, screens):
    panel.get_by_text("Texts of highest activation").wait_for()
    assert "neurons for power" in panel.inner_text() and "read on 40 pairs of texts" in panel.inner_text()
    first = title(panel)
    page.mouse.click(*mark(page, 3))
    panel.locator(".wb-card h4", has_text=re.compile(f"^(?!{first}$)Layer \\d+, neuron \\d+$")).wait_for()
    picked = title(panel)
    chosen = panel.get_by_label("neuron", exact=True).evaluate("box => box.selectedOptions[0].textContent")
    assert chosen.replace("\xa0", " ").startswith(f"{picked.lower()} (contrast s ")
    panel.locator(f".wb-plot[aria-label^='{picked}: which values move it']").wait_for()
    panel.get_by_text(f"{picked}: its activation a at the last token").wait_for()
    panel.get_by_text("Direct effect on tokens").wait_for()
    page.locator(".wb-panel").nth(1).locator(".wb-card h4", has_text=picked).wait_for()  # the other view
    for theme in ("dark", "light"):
        wear(page, theme)
        ground = "rgb(21, 25, 30)" if theme == "dark" else "rgb(255, 255, 255)"
        page.wait_for_function(
            "ground => [...document.querySelectorAll('.wb-panel .main-svg')].every("
            "plot => ['rgba(0, 0, 0, 0)', ground].includes(getComputedStyle(plot).backgroundColor))",
            arg=ground,
        )
        panel.screenshot(path=screens / f"neurons-{theme}.png")


def test_a_neuron_and_a_value_by_keyboard(page, panel):
    box = panel.get_by_label("neuron", exact=True)
    before = title(panel)
    box.press("ArrowDown")
    panel.locator(".wb-card h4", has_text=re.compile(f"^(?!{before}$)Layer \\d+, neuron \\d+$")).wait_for()
    panel.get_by_label("value", exact=True).select_option("security")
    panel.locator(".wb-plot[aria-label*='neurons for security']").wait_for()
    handle = panel.locator(".noUi-handle").first  # of the share
    handle.focus()
    said = panel.locator('[role="status"]', has_text="neurons for security").inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "said => [...document.querySelectorAll('.wb-panel [role=status]')].some("
        "status => /neurons for security/.test(status.textContent) && status.textContent !== said)",
        arg=said,
    )
    assert page.evaluate("document.activeElement.classList.contains('noUi-handle')"), "the focus was lost"


def test_a_row_of_the_overlaps_is_clicked(page, panel):
    panel.locator(".wb-plot[aria-label*='Jaccard index']").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """() => {
            const plot = [...document.querySelectorAll('.wb-panel .js-plotly-plot')][2];
            const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(5), box.top + yaxis._offset + yaxis.l2p(2)]; // hedonism
        }"""
    )
    page.mouse.click(x, y)
    panel.locator(".wb-plot[aria-label*='neurons for hedonism']").wait_for()
    assert panel.get_by_label("value", exact=True).input_value() == "hedonism"


def test_a_bar_too_high_is_told_and_lowered(page, panel):
    handle = panel.locator(".noUi-handle").nth(1)
    handle.focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    panel.locator(".wb-plot[aria-label*='neurons for hedonism']").wait_for()
    assert panel.locator('[role="alert"]').count() == 0


def test_neurons_are_scaled_and_answers_cancelled(page, panel):
    panel.get_by_role("button", name="Run").scroll_into_view_if_needed()
    panel.get_by_text("KL(edited || base)").wait_for()
    panel.get_by_role("button", name="this neuron").click()
    factor = panel.locator(".noUi-handle").nth(2)
    factor.focus()
    page.keyboard.press("End")  # 10
    panel.get_by_role("button", name="Run").click()
    panel.locator('[role="status"]', has_text=re.compile("^done$")).wait_for()
    cards = panel.locator(".wb-two").last.locator(".wb-card")
    assert cards.count() == 2 and all("Judge: affirms" in text for text in cards.all_inner_texts())
    assert re.match(r"layer \d, neuron \d+ times 10", cards.nth(1).inner_text())
    page.keyboard.press("Tab")
    panel.get_by_role("spinbutton", name="new tokens").fill("100")
    panel.get_by_role("spinbutton", name="new tokens").press("Enter")
    panel.get_by_role("spinbutton", name="temperature").fill("5")
    panel.get_by_role("spinbutton", name="temperature").press("Enter")
    panel.locator('[role="status"]', has_text="settings have changed since").wait_for()
    panel.get_by_role("button", name="Run").click()
    panel.locator('[role="status"]', has_text=re.compile("^running$")).wait_for()
    panel.get_by_role("button", name="Cancel").click()
    panel.locator('[role="status"]', has_text=re.compile("^(cancelled|done)$")).wait_for()
    assert panel.locator('button:has-text("Cancel")').is_disabled()
    assert "Judge" not in panel.locator(".wb-two").last.inner_text() or "done" in panel.inner_text()
