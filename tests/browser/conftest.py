"""A real browser, and a JupyterLab of its own to open in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import Lab, browsing, chromium, serving


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
def new_page(executable):
    """Function: options of a browser context -> a page. Ask for it after running notebooks: see `browsing`."""
    with browsing(executable) as new_page:
        yield new_page


@pytest.fixture(scope="module")
def pages(executable):
    """The same for all tests of a module, none of which runs a notebook in this thread."""
    with browsing(executable) as new_page:
        yield new_page


@pytest.fixture
def panel(page):
    """The first panel of a module's `page`; in the end the page had nothing to complain of and asked no other host."""
    yield page.locator(".wb-panel").first
    assert page.watch.complaints == [] and page.watch.abroad == []


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
