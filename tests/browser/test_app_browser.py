"""The studio's page in a real browser: two visitors, light and dark, and what happens when a visit is over."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from labs import WAIT, Watch, stop
from playwright.sync_api import Error

pytestmark = pytest.mark.browser

# Contrast of texts and controls with what is behind them, after WCAG 2; those below 4.5 are answered.
FAINT = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c / 255 <= .03928 ? c / 255 / 12.92 : ((c / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const over = (front, back, a = front[3] ?? 1) => [0, 1, 2].map(k => a * front[k] + (1 - a) * back[k]);
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, ground(node.parentElement));
  };
  const wanted = ".app-bar *, .app-note *, .widget-label, select, input, textarea, p, h3, h4, .wb-card, .wb-small";
  return [...document.querySelectorAll(wanted)].filter(node => node.checkVisibility() && !node.disabled).map(node => {
    const back = ground(node), front = over(parse(getComputedStyle(node).color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), `${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`];
  }).filter(([contrast]) => contrast < 4.5).map(([contrast, told]) => `${contrast.toFixed(1)} ${told}`);
}"""


class App:
    """`workbench app`: its address, its process, what it said."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path):
        self.process, self.url, self.log = process, url, log

    def kernel(self, page: Any) -> psutil.Process:
        """The process of a page's kernel."""
        told = page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
        found = [child for child in psutil.Process(self.process.pid).children() if told in " ".join(child.cmdline())]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def app(executable, tmp_path_factory):
    """`workbench app` on the embedded model, as after the installation: nothing is prepared yet, unless WORKBENCH_CACHE
    is set. Two places.
    """
    home = tmp_path_factory.mktemp("app")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = ["--no-browser", "--visitors", "2", "--port", str(port)]
    with (home / "log").open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench", "app", *given], cwd=home, stdout=stream, stderr=stream,
            env={"WORKBENCH_CACHE": str(home / "cache"), **os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        end = time.monotonic() + 2 * WAIT
        while "Ready: " not in (told := (home / "log").read_text()):
            assert process.poll() is None and time.monotonic() < end, told
            time.sleep(0.2)
        assert "WORKBENCH_CACHE" in os.environ or "Preparing embedded:circle" in told
        assert f"Ready: http://127.0.0.1:{port}/" in told, told
        assert "Up to 2 visitors at a time" in told
        yield App(process, f"http://127.0.0.1:{port}", home / "log")
    finally:
        stop(process)


@pytest.fixture
def visit(app, pages):
    """Function: options of a browser context -> a page with a living studio, watched; all are closed at last."""
    opened = []

    def come(path: str = "/", **options: Any) -> Any:
        page = pages(viewport={"width": 1500, "height": 1200}, **options)
        opened.append(page)
        page.watch = Watch(page, app.url)
        page.goto(app.url + path)
        page.locator("#studio .wb-studio .wb-plot[data-turn]").first.wait_for()
        assert not page.locator("#app-loading").is_visible()
        return page

    yield come
    for page in opened:
        with suppress(Error):  # it is closed already
            page.close(run_before_unload=True)


def ask(page: Any, prompt: str) -> None:
    """Type a prompt, whatever characters it has."""
    page.locator("#studio textarea").first.evaluate(
        """(area, prompt) => { area.value = prompt;
            for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, { bubbles: true })); }""",
        prompt,
    )


def counted(page: Any, tokens: str) -> None:
    page.locator("#studio [role=status]", has_text=re.compile(tokens)).first.wait_for()


@pytest.mark.smoke
def test_two_visitors_do_not_mix_and_the_third_waits_for_a_place(app, visit, pages, screens):
    one, two = visit(color_scheme="light"), visit(color_scheme="dark")
    assert app.kernel(one).pid != app.kernel(two).pid
    for page, is_light, ground in ((one, "true", "rgb(255, 255, 255)"), (two, "false", "rgb(33, 33, 33)")):
        assert page.evaluate("document.body.dataset.jpThemeLight") == is_light
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert page.evaluate(FAINT) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('.widget-label')).fontSize)") >= 15
        assert page.locator("main h1").is_hidden() and "Value workbench" in page.locator("header h1").inner_text()
    ask(one, "Should Mira sell the old house?")
    counted(one, r"^10 of 128 tokens")
    ask(two, "Should Carlos move to Montreal or live on a barge?")
    counted(two, r"^1[1-9] of 128 tokens")
    counted(one, r"^10 of 128 tokens")
    assert one.locator("#studio textarea").first.input_value() == "Should Mira sell the old house?"
    for page, method in ((one, "CAA"), (two, "NeVA")):  # what was prepared: mean differences, neurons
        page.get_by_label("method").select_option(label=method)
        page.locator(".wb-dial-told", has_text=method).wait_for()
        page.locator("#studio button", has_text=re.compile(r"^\s*Run$")).click()
    for page in (one, two):
        page.locator("#studio [role=status]", has_text=re.compile("^done$")).wait_for()
        assert page.locator(".wb-problem").count() == 0
    assert "CAA" in one.locator(".wb-dial-told").inner_text() and "NeVA" in two.locator(".wb-dial-told").inner_text()
    for name, page in (("light", one), ("dark", two)):
        page.screenshot(path=screens / f"app-{name}.png", full_page=True)
        assert page.watch.complaints == [] and page.watch.abroad == []

    third = pages(viewport={"width": 1000, "height": 500})
    assert third.goto(app.url).status == 503
    third.get_by_role("heading", name="All places are taken").wait_for()
    third.screenshot(path=screens / "app-full.png")
    two.close(run_before_unload=True)
    third.locator("#studio .wb-studio").wait_for()  # by itself
    third.close(run_before_unload=True)


def test_the_theme_is_asked_for_or_changed(visit):
    page = visit("/?theme=dark", color_scheme="light")
    figure = page.locator(".wb-plot .main-svg").first

    def shows(dark: bool) -> None:
        page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(not dark).lower()}'")
        page.wait_for_function("""([node, dark]) => {
            const ground = getComputedStyle(node.closest('.wb-plot').querySelector('.main-svg')).backgroundColor;
            return (ground.match(/\\d+/g)[0] < 100) === dark;
        }""", arg=[figure.element_handle(), dark])  # fmt: skip

    shows(dark=True)
    page.get_by_role("button", name="Light page").click()
    shows(dark=False)
    assert page.url.endswith("?theme=light") and page.evaluate(FAINT) == []
    page.reload()
    page.locator("#studio .wb-studio .wb-plot[data-turn]").first.wait_for()
    assert page.evaluate("document.body.dataset.jpThemeLight") == "true"
    assert page.watch.complaints == [] and page.watch.abroad == []


def test_the_page_says_what_is_going_on_while_it_loads(app, pages, screens):
    page = pages(viewport={"width": 1200, "height": 700})
    page.goto(app.url, wait_until="commit")
    page.locator("#app-loading li.app-now").wait_for()
    assert "Python process of your own" in page.locator("#app-loading").inner_text()
    assert page.evaluate(FAINT) == []
    page.screenshot(path=screens / "app-loading.png")
    page.locator("#studio .wb-studio").wait_for()
    page.locator("#app-loading").wait_for(state="hidden")
    page.close(run_before_unload=True)


def test_a_visit_that_is_over_says_so_and_starts_again(app, visit, screens):
    page = visit()
    ask(page, "Should Mira sell the old house?")
    counted(page, r"^10 of 128 tokens")
    before = app.kernel(page)
    os.kill(before.pid, signal.SIGKILL)
    page.get_by_role("heading", name="This visit is over").wait_for()
    assert page.evaluate(FAINT) == []
    assert page.locator("#studio textarea").first.input_value() == "Should Mira sell the old house?", "still readable"
    page.screenshot(path=screens / "app-over.png")
    page.get_by_role("button", name="Start again").click()
    page.get_by_role("heading", name="This visit is over").wait_for(state="hidden")
    page.locator("#studio .wb-studio .wb-plot[data-turn]").first.wait_for()
    assert app.kernel(page).pid != before.pid and page.watch.abroad == []


def test_a_closed_tab_gives_its_kernel_back_at_once(app, visit):
    page = visit()
    kernel = app.kernel(page)
    began = time.monotonic()
    page.close(run_before_unload=True)
    kernel.wait(10)
    assert time.monotonic() - began < 10


def test_hostile_prompts_leave_the_page_alive(app, visit):
    page = visit()
    kernel = app.kernel(page)
    title = page.title()
    ask(page, "x" * 10_000)
    counted(page, "too long by")
    for prompt in (
        "</textarea><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">",
        "\x00\x01\x1b[31m\u202eevil\x7f", "lone \ud800 surrogate", "{{ 7 * 7 }} $\\frac{a}{b}$ <|end|> <|user|>",
    ):  # fmt: skip
        ask(page, prompt)
        page.wait_for_timeout(300)
    ask(page, "Should Mira sell the old house?")
    counted(page, r"^10 of 128 tokens")
    assert page.locator(".wb-problem").count() == 0
    assert kernel.is_running() and app.kernel(page).pid == kernel.pid
    assert page.title() == title and page.locator("#studio img").count() == 0
    assert page.watch.complaints == [] and page.watch.abroad == []
    assert app.process.poll() is None
