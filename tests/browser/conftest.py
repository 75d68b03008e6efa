"""A real browser, and a JupyterLab of its own to open in it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

WAIT = (
    600.0  # seconds; a bound for machines that do other work beside, never a pace: tests go on when they see
)

# Galata is JupyterLab's own test configuration, without token; it takes a fixed port, so ours comes after it.
SERVER = """
from jupyterlab.galata import configure_jupyter_server
configure_jupyter_server(c)
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.port = {port}
c.ServerApp.root_dir = {root!r}
c.ServerApp.allow_root = True
c.LabApp.workspaces_dir = {workspaces!r}
c.LabApp.user_settings_dir = {settings!r}
"""
SETTINGS = {
    # every cell stands in the page, seen or not
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": (
        '{"checkForUpdates": false, "fetchNews": "false", "doNotDisturbMode": true}'
    ),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests run last: the quick ones tell first what is wrong."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@pytest.fixture(scope="session")
def executable() -> str:
    """Path of Chromium or Chrome; without one the tests are skipped, or fail where a browser is required."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    message = f"none of {', '.join(BROWSERS)} is installed, so nothing was seen in a real browser"
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
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        context.set_default_timeout(WAIT * 1000)
        return context.new_page()

    return make


@pytest.fixture(scope="session")
def screens() -> Path:
    """The folder for screenshots."""
    folder = Path(__file__).parents[2] / "build" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Lab:
    """A running JupyterLab: its address and the folder it shows."""

    def __init__(self, url: str, root: Path):
        self.url, self.root = url, root


@pytest.fixture(scope="session")
def lab(executable, tmp_path_factory) -> Iterator[Lab]:
    """JupyterLab on a free port of localhost, with settings, workspaces and runtime files of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folders = {
        name: home / name
        for name in ("root", "workspaces", "settings", "config", "data", "runtime", "ipython")
    }
    for folder in folders.values():
        folder.mkdir()
    for name, text in SETTINGS.items():
        path = folders["settings"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = home / "server.py"
    strings = {name: str(folder) for name, folder in folders.items()}
    config.write_text(SERVER.format(port=port, **strings), encoding="utf-8")
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": strings["config"],
        "JUPYTER_DATA_DIR": strings["data"],
        "JUPYTER_RUNTIME_DIR": strings["runtime"],
        "IPYTHONDIR": strings["ipython"],
    }
    log = home / "server.log"
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--config", str(config)],
            env=environment,
            cwd=folders["root"],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(url, server, log)
        yield Lab(url, folders["root"])
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = WAIT) -> None:
    """Until the server answers; otherwise the test fails with the end of its log."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/api", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
    pytest.fail(f"JupyterLab did not answer at {url} (exit code {server.poll()}). Its log ends:\n{tail}")
