"""A real browser, and a JupyterLab of its own to open in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import FLAGS, WAIT, Lab, chromium, serving


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests run last: the quick ones tell first what is wrong."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@pytest.fixture(scope="session")
def executable() -> str:
    """Path of Chromium or Chrome; without one the tests are skipped, or fail where a browser is required."""
    if path := chromium():
        return path
    message = "no Chromium or Chrome is installed, so nothing was seen in a real browser"
    if os.environ.get("WORKBENCH_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def browser(executable):
    """A browser with a fresh profile. Ask for it after running notebooks: its event loop holds the thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=WAIT * 1000)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Function: options of a browser context -> a page in a context of its own, patient on a busy machine."""

    def make(**options):
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        context.set_default_timeout(WAIT * 1000)
        return context.new_page()

    return make


@pytest.fixture(scope="session")
def screens() -> Path:
    """The folder for screenshots."""
    folder = Path(__file__).parents[2] / "build" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(executable, tmp_path_factory) -> Iterator[Lab]:
    """JupyterLab on a free port of localhost."""
    with serving(tmp_path_factory.mktemp("jupyter")) as lab:
        yield lab
