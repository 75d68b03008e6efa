"""The leakage map in JupyterLab, by mouse and keyboard."""

import re

import pytest
from labs import errors, opened, wear
from readable import evaluation

from workbench.evaluation.leakage import leakage

pytestmark = pytest.mark.browser

CELL = """
from workbench.panels.leakage_map import leakage_map
panel = leakage_map("kept", "CAA", steered="power")
panel
"""
# Where a cell of the heat map is in the page.
PLACE = """([steered, judged]) => {
    const plot = [...document.querySelectorAll('.js-plotly-plot')].find(plot => plot.data[0].type === 'heatmap');
    plot.scrollIntoView({ block: 'center' });
    const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
    return [box.left + xaxis._offset + xaxis.d2p(judged), box.top + yaxis._offset + yaxis.d2p(steered)];
}"""
MARKS = ".wb-plot .polar .trace:has(path.point) path.point"


@pytest.mark.smoke
def test_leakage_map_by_mouse_and_keyboard(lab, new_page, screens):
    ev = evaluation()
    ev.save(lab.root / "kept")
    page = opened(new_page, lab, "leakage.ipynb", CELL, height=1400)
    panel = page.locator(".wb-panel").first

    def says(text: str) -> None:
        panel.get_by_text(re.compile(text)).first.wait_for()

    def rise(method: str, steered: str, judged: str) -> str:
        leak = leakage(ev.answers, method, temperature=1.0, resamples=2)
        return f"{abs(float(leak.matrix.sel(steered=steered, value=judged))):.3f}"

    page.wait_for_function("document.querySelectorAll('.wb-plot[data-turn]').length === 2")
    says(f"steering power by CAA, CSR of power rises by {rise('CAA', 'power', 'power')}")
    says("How much leaks while power is steered by CAA")

    # hostile answers are text: those that differ stand on the first pages
    seen = panel.inner_text()
    forth = panel.get_by_role("button", name="Next")
    for number in range(2, 7):
        forth.focus()
        page.keyboard.press("Enter")
        says(f"Page {number} of 6")
        seen += panel.inner_text()
    assert "<img src=x onerror=" in seen and "[U+202E] this was turned round" in seen and "␇␛[31m" in seen
    assert "cut: 120,000 characters" in seen and "no answer: 79 of 64 tokens" in seen
    assert panel.locator("img").count() == 0 and page.title() != "harmed"

    # by keyboard: the next value down
    panel.get_by_label("value steered").focus()
    page.keyboard.press("ArrowDown")
    says("How much leaks while security is steered by CAA")
    says(f"steering security by CAA, CSR of power (rises|falls) by {rise('CAA', 'security', 'power')}")
    says("Page 1 of 6")

    # by mouse: a cell, then a mark of the profile
    page.mouse.click(*page.evaluate(PLACE, ["benevolence", "universalism"]))
    says(f"steering benevolence by CAA, CSR of universalism rises by {rise('CAA', 'benevolence', 'universalism')}")
    page.wait_for_function("""() =>
        document.querySelector('.js-plotly-plot').layout.title.text === 'Steering benevolence by CAA'""")
    panel.locator(MARKS).nth(7).click(force=True)
    says(f"steering benevolence by CAA, CSR of tradition (rises|falls) by {rise('CAA', 'benevolence', 'tradition')}")

    panel.get_by_label("matrix").select_option("centred")
    page.wait_for_function("""[...document.querySelectorAll('.js-plotly-plot')].some(
        plot => plot.layout.title.text.endsWith('centred'))""")
    panel.get_by_label("method").select_option("ConVA")
    says("ConVA, each value's own questions, T = 1. Intervals of ratios: 1,000 resamples")
    says(f"benevolence by ConVA, CSR of tradition (rises|falls) by {rise('ConVA', 'benevolence', 'tradition')}")
    panel.get_by_label("matrix").select_option("raw")

    page.set_viewport_size({"width": 1500, "height": 2100})
    page.mouse.move(5, 5)  # no hover in the pictures
    for theme in ("light", "dark"):
        wear(page, theme)
        page.wait_for_function(f"""() => [...document.querySelectorAll('.js-plotly-plot')].every(
            plot => (plot._fullLayout.paper_bgcolor === '#fff' || plot._fullLayout.paper_bgcolor === 'white')
                === {str(theme == "light").lower()})""")
        panel.screenshot(path=screens / f"leakage-{theme}.png")

    page.keyboard.press("Control+s")
    page.locator(".jp-mod-dirty").wait_for(state="detached")
    page.reload()
    says(f"benevolence by ConVA, CSR of tradition (rises|falls) by {rise('ConVA', 'benevolence', 'tradition')}")
    page.wait_for_function("""() => [...document.querySelectorAll('.js-plotly-plot')].map(
        plot => plot.layout.title.text).join() === 'Steering benevolence by ConVA,All ten, by ConVA'""")
    assert errors(page) == [] and page.watch.abroad == []
    assert page.watch.complaints == []
