"""A JupyterLab of one's own to drive with a real browser: for tests, pictures and benchmarks."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from workbench.doctor import chromium as chromium  # also theirs who import it from here

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WAIT = float(os.environ.get("WORKBENCH_WAIT", 300))
"""Seconds; a bound for machines that do other work beside, never a pace: who waits goes on when it sees."""


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
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells
    .flatMap(cell => cell.outputs || []).filter(output => output.output_type === 'error')
    .map(output => `${output.ename}: ${output.evalue}`)"""
ENDED = rf"""() => ({ERRORS})().length > 0
    || [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
        .every(prompt => /^\[\d+\]:$/.test(prompt.textContent.trim()))"""
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


class Lab:
    """A running JupyterLab: its address and the folder it shows."""

    def __init__(self, url: str, root: Path):
        self.url, self.root = url, root


@contextmanager
def serving(home: Path, **environment: str) -> Iterator[Lab]:
    """JupyterLab on a free port of localhost, with settings, workspaces and runtime files of its own, below `home`."""
    names = ("root", "workspaces", "settings", "config", "data", "runtime", "ipython")
    folders = {name: home / name for name in names}
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
    known = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    places = {f"JUPYTER_{name}_DIR": strings[folder] for name, folder in known.items()}
    log = home / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--config", str(config)],
            env=os.environ | places | {"IPYTHONDIR": strings["ipython"]} | environment,
            cwd=folders["root"], stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(url := f"http://127.0.0.1:{port}", server, log)
        yield Lab(url, folders["root"])
    finally:
        stop(server)


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = WAIT) -> None:
    """Until the server answers; else RuntimeError with the end of its log."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/api", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
    raise RuntimeError(f"JupyterLab did not answer at {url} (exit code {server.poll()}). Its log ends:\n{tail}")


def stop(server: subprocess.Popen) -> None:
    """End a server, gently where it lets one."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@contextmanager
def browsing(executable: str) -> Iterator[Any]:
    """Function: options of a browser context -> a page in a context of its own, patient on a busy machine.

    Enter it after running notebooks in this thread: the browser's event loop holds it.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=WAIT * 1000)

        def new_page(**options: Any) -> Any:
            context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
            context.set_default_timeout(WAIT * 1000)
            return context.new_page()

        try:
            yield new_page
        finally:
            browser.close()


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    """A notebook with these code cells."""
    return new_notebook(cells=[new_code_cell(source) for source in sources], metadata=KERNEL)


def run_all(new_page, lab: Lab, notebook: nbformat.NotebookNode, name: str):
    """The page of JupyterLab after every cell of `notebook` ran, or one failed."""
    nbformat.write(notebook, lab.root / name)
    page = new_page()
    page.goto(f"{lab.url}/lab/tree/{name}?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(ENDED, timeout=45 * 60_000)
    return page


def errors(page) -> list[str]:
    """Cells that failed and widgets that did not come up."""
    return page.evaluate(ERRORS) + page.get_by_text("Error displaying widget").all_inner_texts()


def wear(page, theme: str) -> None:
    """JupyterLab's theme, "light" or "dark"; figures are drawn anew for it."""
    name = f"JupyterLab {theme.capitalize()}"
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(theme == 'light').lower()}'")


SLOW = "[anywidget] Failed to initialize model."  # after two seconds on a busy machine; it comes all the same


class Watch:
    """What a page complains of, and what it asks of hosts other than its own."""

    def __init__(self, page, own: str):
        self.complaints: list[str] = []
        self.abroad: list[str] = []
        page.on("pageerror", lambda error: self._told(str(error)))
        page.on("console", lambda told: self._told(told.text) if told.type == "error" else None)
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda asked: self._asked(asked.url, own))

    def _told(self, complaint: str) -> None:
        if SLOW not in complaint:
            self.complaints.append(complaint)

    def _asked(self, url: str, own: str) -> None:
        if url.startswith(("http", "ws")) and own.split("//", 1)[1] not in url:
            self.abroad.append(url)


def opened(new_page, lab: Lab, name: str, *cells: str, width: int = 1500, height: int = 1500) -> Any:
    """The page of a notebook of these cells, all run without an error; `page.watch` listens from the start."""
    made: dict[str, Any] = {}

    def watched() -> Any:
        made["page"] = new_page(viewport={"width": width, "height": height})
        made["watch"] = Watch(made["page"], lab.url)
        return made["page"]

    page = run_all(watched, lab, notebook_of(*cells), name)
    assert (problems := errors(page)) == [], problems
    page.watch = made["watch"]
    return page
