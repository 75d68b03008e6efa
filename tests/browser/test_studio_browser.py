"""The studio in JupyterLab, by mouse and keyboard."""

import pytest
from labs import errors, run_all
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.browser

CELL = """
import warnings
import torch
torch.set_num_threads(1)
import workbench as wb

model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded").groupby("value", sort=False).head(60)
probes = wb.fit_probes(model, pairs, C=1e-5, layers=[2, 3, 4], folds=2)
questions, unrelated = wb.load_questions("embedded"), wb.load_unrelated("embedded")
related = questions[questions["split"] == "calibration"]["question"][:60]
gate = wb.ProbeGate.fit(model, related, unrelated.query("not related")["prompt"].tolist()[:60], layer=2)
panel = wb.panels.studio(model, probes, gate, layers=[3], value="hedonism", target=.78)
panel
"""


def test_look(lab, new_page, screens):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    page = run_all(new_page, lab, new_notebook(cells=[new_code_cell(CELL)], metadata=kernel), "studio.ipynb")
    assert errors(page) == []
    page.locator(".wb-dial svg").wait_for()
    page.set_viewport_size({"width": 1500, "height": 2000})
    page.wait_for_timeout(3000)
    page.locator(".wb-panel").first.screenshot(path=screens / "studio-0.png")
    box = page.locator(".wb-dial svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * .7, box["y"] + box["height"] * .3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * .6, box["y"] + box["height"] * .3, steps=5)
    page.mouse.up()
    page.wait_for_timeout(8000)
    page.locator(".wb-panel").first.screenshot(path=screens / "studio-1.png")
    print(page.locator(".wb-panel").first.inner_text())
