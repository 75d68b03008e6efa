"""The results browser in JupyterLab, by mouse and keyboard."""

import re

import pandas as pd
import pytest
from labs import errors, opened, wear
from readable import evaluation, second_judge

from workbench.evaluation.comparison import scores

pytestmark = pytest.mark.browser

CELL = """
import pandas as pd
from workbench.panels.results_browser import results_browser
panel = results_browser("kept", {"second judge": pd.read_parquet("second.parquet")}, folder="out")
panel
"""


@pytest.mark.smoke
def test_results_browser_by_mouse_and_keyboard(lab, new_page, screens):
    ev = evaluation()
    ev.save(lab.root / "kept")
    second_judge(ev.answers).to_parquet(lab.root / "second.parquet")
    (lab.root / "out").mkdir()
    page = opened(new_page, lab, "results.ipynb", CELL, height=1400)
    panel = page.locator(".wb-panel").first
    table, own = ev.answers, pd.Series(scores(ev.answers, "csr"))

    def says(text: str) -> None:
        panel.get_by_text(re.compile(text)).first.wait_for()

    says(f"{len(table):,} of {len(table):,} answers match")
    says(f"Answer 1 of {len(table):,}")

    # filters, by mouse and keyboard
    panel.get_by_label("method").select_option("CAA")
    panel.get_by_label("value steered").focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    rows = table[(table["method"] == "CAA") & (table["value"] == "power")]
    says(f"{len(rows)} of {len(table):,} answers match")
    panel.get_by_label("score").select_option("1: acts on it")
    rows = rows[own[rows.index] == 1]
    says(f"{len(rows)} of {len(table):,} answers match")

    # hostile answers are text, by buttons that take the focus
    shown = [panel.locator(".wb-box").first.inner_text()]
    forth = panel.get_by_role("button", name="Next")
    forth.focus()
    for number in range(2, 5):
        page.keyboard.press("Enter")
        says(f"Answer {number} of {len(rows)}")
        shown.append(panel.locator(".wb-box").first.inner_text())
    assert shown[0].startswith("<img src=x onerror=") and shown[1].startswith("[U+202E] this was turned round")
    assert shown[2].endswith("[cut: 120,000 characters]") and shown[3] == "x" * 5000
    assert panel.locator("img").count() == 0 and page.title() != "harmed"
    boxes = panel.locator(".wb-box").first.bounding_box(), panel.bounding_box()
    assert boxes[0]["height"] < 400 and boxes[0]["width"] < boxes[1]["width"]

    # a row of the page, by mouse
    panel.get_by_role("button", name="6", exact=True).click()
    says(f"Answer 6 of {len(rows)}")
    says(f"row {rows.index[5]:,} of the table")
    assert rows["answer"].iloc[5] in panel.locator(".wb-box").first.inner_text()
    assert panel.locator("tr.wb-chosen").count() == 1

    panel.get_by_role("button", name="Clear filters").click()
    says(f"{len(table):,} of {len(table):,} answers match")
    says(f"row {rows.index[5]:,} of the table")  # the place stays with its answer

    # what is typed
    panel.get_by_label("text").fill("THE CUSTOMS of the village")
    found = (table["question"] + "\n" + table["answer"]).str.casefold().str.contains("the customs of the village")
    says(f"{found.sum():,} of {len(table):,} answers match")
    panel.get_by_label("judges").select_option("any two disagree")
    judged = second_judge(table)
    theirs = pd.Series(scores(judged, "csr"), judged.index).reindex(table.index)
    apart = found & theirs.notna() & own.notna() & (theirs != own)
    says(f"{apart.sum():,} of {len(table):,} answers match")
    says(f"Two judges or more judged {apart.sum():,} of them and agree on the steered value in 0.%")

    for number in ("", "-2"):
        panel.get_by_role("button", name="Export CSV").click()
        says(re.escape(f"out/answers{number}.csv"))
        assert pd.read_csv(lab.root / "out" / f"answers{number}.csv")["row"].tolist() == table.index[apart].tolist()

    panel.get_by_label("text").fill("")
    panel.get_by_label("method").select_option("ConVA")
    both = theirs.notna() & own.notna() & (theirs != own) & (table["method"] == "ConVA")
    says(f"{both.sum():,} of {len(table):,} answers match")
    page.set_viewport_size({"width": 1500, "height": 2100})
    for theme in ("light", "dark"):
        wear(page, theme)
        panel.screenshot(path=screens / f"results-{theme}.png")
    assert errors(page) == [] and page.watch.abroad == []
    assert page.watch.complaints == []
