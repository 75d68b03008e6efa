"""The report in a real browser: its policy lets its own scripts run, and nothing else."""

import pytest
from evaluated import HOSTILE, evaluation

from workbench.report import write_report

pytestmark = pytest.mark.browser
DRAWN = """() => [...document.querySelectorAll('.plot')].filter(p => !p.closest('details:not([open])'))
    .every(p => p.querySelector('.main-svg'))"""


def test_a_report_draws_pages_and_stays_alone(new_page, tmp_path, screens):
    path = write_report(evaluation(), tmp_path / "report.html")
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 25, 30)")):
        page = new_page(color_scheme=scheme)
        trouble, asked = [], []
        page.on("console", lambda message, trouble=trouble: trouble.append(message.text))
        page.on("pageerror", lambda error, trouble=trouble: trouble.append(str(error)))
        page.on("dialog", lambda dialog, trouble=trouble: trouble.append(dialog.message))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function(DRAWN)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert page.locator("#cost .main-svg").first.evaluate("e => getComputedStyle(e).backgroundColor") == ground
        fold = page.locator("#leakage details").first
        fold.locator("summary").click()
        page.wait_for_function(DRAWN)
        assert fold.locator(".plot .main-svg").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        page.screenshot(path=screens / f"report-{scheme}.png", full_page=True)
        seen = []
        while "1 of" not in (where := page.locator("#where").inner_text()) or not seen:
            seen.append((where, page.locator("#question").inner_text(), page.locator("#answers").inner_text()))
            page.locator("#next").click()
        assert len({question for _, question, _ in seen}) == len(seen) > 3
        page.locator("#group").select_option(label="power behind a negative prompt")
        assert "1 of" in page.locator("#where").inner_text()
        hostile = [text for one in seen for text in one[1:] if "<script>" in text]
        assert all(HOSTILE.split()[0] in text for text in hostile)
        assert page.locator("main img").count() == 0
        assert not trouble and asked == [path.as_uri()]
