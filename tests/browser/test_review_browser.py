"""Blind review in JupyterLab by keyboard alone; the kernel is killed on the way."""

import os
import re
import signal

import pandas as pd
import pytest
from labs import errors, run_all
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.browser

N, KILLED = 20, 12
CELL = """
import os
import pandas as pd
from workbench.panels import annotate

people = "Mira Tomasz Aiko Femi Lars Noor Priya Diego Hana Kofi".split()
items = pd.DataFrame([
    {"question": f"Should {who} take the night shift or coach the young team?",
     "text": f"{who} could {how}, weekends free.\\n<img src=x onerror='document.title=1'> That is number {n}.",
     "method": f"SECRET{n % 3}"}
    for n, (who, how) in enumerate((who, how) for who in people for how in ("ask the neighbours", "go it alone"))
])
panel = annotate(items, annotator="Ana", record="review.jsonl", value="benevolence", seed=5)
print("kernel", os.getpid())
panel
"""


def test_review_survives_a_killed_kernel(lab, new_page, screens):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell(CELL), new_code_cell("panel.state.export('by-cell.csv')")]
    page = run_all(new_page, lab, new_notebook(cells=cells, metadata=kernel), "review.ipynb")
    assert errors(page) == []
    panel = page.locator(".wb-review")
    record = lab.root / "review.jsonl"

    def number() -> int:
        """Process of the kernel that printed it; waits for the cell's output."""
        found = page.locator(".jp-OutputArea-output", has_text=re.compile(r"kernel \d+")).first.inner_text()
        return int(found.split()[-1])

    def stands(item: int, judged: int) -> None:
        panel.get_by_text(f"Item {item} of {N}", exact=True).wait_for()
        panel.get_by_text(f"{judged} judged").wait_for()

    def press(key: str, item: int, judged: int) -> None:
        page.keyboard.press(key)
        stands(item, judged)

    stands(1, 0)
    page.keyboard.press("Escape")
    panel.focus()
    for n in range(10):
        press("123"[n % 3], n + 2, n + 1)
    panel.screenshot(path=screens / "review.png")
    press("u", 10, 9)
    press("Backspace", 9, 8)
    press("ArrowLeft", 8, 8)
    press("ArrowLeft", 7, 8)
    assert panel.locator("[aria-pressed=true]").inner_text().split() == ["1", "yes"]
    press("ArrowRight", 8, 8)
    press("ArrowRight", 9, 8)
    page.keyboard.press("9")  # no such label
    page.keyboard.press("b")  # JupyterLab's key for a new cell
    page.keyboard.press("Control+1")
    for n in range(8, KILLED):
        press("123"[n % 3], n + 2, n + 1)
    shown = panel.inner_text()
    assert "SECRET" not in shown and "<img src=x" in shown and panel.locator("img").count() == 0
    assert page.title() != "1"
    page.screenshot(path=screens / "review-lab.png")

    lines = record.read_bytes()
    os.kill(killed := number(), signal.SIGKILL)
    page.get_by_text("Kernel Restarting", exact=True).wait_for()
    page.keyboard.press("Enter")  # its dialog
    page.get_by_text("Kernel Restarting", exact=True).wait_for(state="detached")
    page.get_by_text("| Idle").wait_for()
    assert record.read_bytes() == lines
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(f"""() => [...document.querySelectorAll('.jp-OutputArea-output')].some(
        output => /kernel \\d+/.test(output.textContent) && !output.textContent.includes('kernel {killed}'))""")
    assert number() != killed
    stands(KILLED + 1, KILLED)
    panel.screenshot(path=screens / "review-again.png")
    panel.get_by_text("Does the answer express").click()
    for n in range(KILLED, N):
        press("123"[n % 3], min(n + 2, N), n + 1)
    panel.get_by_text(f"All {N} items are judged.").wait_for()
    panel.get_by_role("button", name="Export CSV").click()
    panel.get_by_text("Written to review-Ana.csv").wait_for()
    press("ArrowLeft", N - 1, N)  # the keyboard still works after a click
    panel.screenshot(path=screens / "review-done.png")

    table = pd.read_csv(lab.root / "review-Ana.csv")
    assert len(table) == N and table["label"].notna().all() and table["method"].nunique() == 3
    assert table["label"].value_counts().to_dict() == {"yes": 7, "partly": 7, "no": 6}
    assert len(record.read_text().splitlines()) == 1 + N + 4  # two taken back, two judged again
    assert record.read_bytes().startswith(lines)
    kinds = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.map(cell => cell.cell_type)"
    assert page.evaluate(kinds) == ["code", "code"], "keys reached JupyterLab and changed the notebook"
    assert errors(page) == []
