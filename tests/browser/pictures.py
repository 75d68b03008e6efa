"""Pictures of all panels, light and dark, as a browser shows them: `make pictures` keeps them for the README.

Runs the notebook of the panels in a JupyterLab of its own and writes notebooks/pictures/NAME-THEME.png.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from labs import browsing, chromium, errors, run_all, serving, wear

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
WIDE = {"viewport": {"width": 1560, "height": 2800}}
GOING = "being found|texts read|not counted yet|not found yet|[0-9] of [0-9]+ refitted"
"""What panels say while they are still at it."""
DRAWN = """panel => [...panel.querySelectorAll('.wb-plot')].every(
    plot => plot.offsetParent === null || plot.dataset.turn !== undefined && plot.querySelector('.main-svg'))"""


def take(folder: Path = NOTEBOOKS / "pictures") -> list[Path]:
    """Run the notebook, photograph each panel in it; the paths of the pictures."""
    executable = chromium()
    if executable is None:
        raise SystemExit("No Chromium or Chrome is installed. What to do: install one, then make pictures again.")
    notebook = nbformat.read(NOTEBOOKS / "09_panels.ipynb", as_version=4)
    notebook.cells = notebook.cells[:-2]  # the last cell shows two of them again
    folder.mkdir(exist_ok=True)
    taken = []
    with (
        tempfile.TemporaryDirectory() as home, serving(Path(home), OMP_NUM_THREADS="1") as lab,
        browsing(executable) as new_page,
    ):  # fmt: skip
        page = run_all(lambda: new_page(**WIDE), lab, notebook, "panels.ipynb")
        if problems := errors(page):
            raise SystemExit("\n".join(problems))
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")  # room
        panels = page.locator(".jp-OutputArea-output > .wb-panel, .jp-OutputArea-output .lm-Panel > .wb-panel")
        page.wait_for_function(f"() => !/{GOING}/.test(document.querySelector('.jp-Notebook').innerText)")
        for theme in ("light", "dark"):
            wear(page, theme)
            for n in range(panels.count()):
                panel = panels.nth(n)
                panel.scroll_into_view_if_needed()
                page.wait_for_timeout(1500)  # a theme is drawn anew, figure by figure
                drawn = f"async panel => {{ while (!({DRAWN})(panel)) await new Promise(requestAnimationFrame) }}"
                panel.evaluate(drawn)
                name = panel.locator(".wb-heading").first.inner_text().lower().replace(" ", "-")
                path = folder / f"{name}-{theme}.png"
                panel.screenshot(path=path)
                taken.append(path)
    return taken


if __name__ == "__main__":
    for path in take(*map(Path, sys.argv[1:])):
        print(path, f"{path.stat().st_size / 1e3:.0f} kB")
