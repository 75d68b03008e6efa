"""How soon panels answer: from a hand's move to the redrawn picture, in a real browser.

A JupyterLab and a Chromium of its own on this machine; the times are the browser's, from the key or pointer event to
the frame after the last change of the picture, kernel, message, JSON and drawing included. Cached: the layer, value or
threshold moved without any forward pass. `gap` is the longest time for which the kernel's event loop was kept from
anything else meanwhile, another cell for one.

    workbench bench panels        # writes benchmarks/results/panels.json
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "browser"))
from labs import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    browsing,
    chromium,
    errors,
    notebook_of,
    run_all,
    serving,
)

RESULTS = HERE / "results" / "panels.json"
MOVES = 20
SETUP = """
import asyncio, time
import torch
torch.set_num_threads(1)
import workbench as wb

model = wb.load_model("embedded:circle")
pairs = wb.load_pairs("embedded")
probes = wb.fit_probes(model, pairs, C=1e-5)
questions, unrelated = wb.load_questions("embedded"), wb.load_unrelated("embedded")
questions, unrelated = (table[table["split"] == "calibration"] for table in (questions, unrelated))
related = [*questions["question"], *unrelated.query("related")["prompt"]]
gate = wb.ProbeGate.fit(model, related, unrelated.query("not related")["prompt"].tolist())

class Beat:
    '''The longest time for which nothing else could run.'''
    gap = 0.0
    async def go(self):
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            now = time.perf_counter()
            self.gap, last = max(self.gap, now - last), now
beat = Beat()
beating = asyncio.get_running_loop().create_task(beat.go())
"""
PANELS = {
    "studio": 'wb.panels.studio(model, probes, gate, layers=[3], value="hedonism", target=.78)',
    "probe explorer": "wb.panels.probe_explorer(model, probes)",
    "geometry": "wb.panels.geometry(probes)",
    "gate tuner": "wb.panels.gate_tuner(gate, model)",
}
# Watches one panel: when keys and pointers came, when its pictures and words changed, after which frame they were seen.
WATCH = """panel => {
    const seen = window.__seen = { moves: [], changes: [] };
    for (const kind of ['keydown', 'pointermove', 'pointerup', 'change'])
        panel.addEventListener(kind, event => seen.moves.push([kind, performance.now()]), true);
    new MutationObserver(changes => {
        const kinds = new Set(changes.map(({ target, type }) => {
            const node = target.nodeType === 1 ? target : target.parentElement;
            const of = name => node.closest?.(name) || node.querySelector?.(name);
            return type === 'attributes' ? 'plot' : of('.wb-two') ? 'answer' : of('.wb-words') ? 'words' : 'text'; }));
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const now = performance.now();
            for (const kind of kinds) seen.changes.push([kind, now]);
        }));
    }).observe(panel, { subtree: true, childList: true, characterData: true, attributes: true,
                        attributeFilter: ['data-turn'] });
}"""


TOLD = ("plot", "text")  # the ROC point stands still where no prompt changes sides; what is told moves


class Bench:
    """One panel of a page."""

    def __init__(self, page: Any, name: str, number: int):
        self.page, self.name = page, name
        self.panel = page.locator(".jp-OutputArea-output .wb-panel").nth(number)
        self.panel.evaluate(WATCH)

    def code(self, source: str) -> str:
        """What a line prints in the kernel, by a message of its own beside the notebook."""
        return self.page.evaluate(
            """async code => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({ code, store_history: false });
                let told = '';
                future.onIOPub = message => { told += message.content.text ?? message.content.evalue ?? ''; };
                await future.done;
                return told.trim();
            }""", source)  # fmt: skip

    def quiet(self, still: float = 0.7) -> None:
        """Until nothing in the panel changed for so long."""
        since = "still => performance.now() - (window.__seen.changes.at(-1)?.[1] ?? 0) > still"
        self.page.wait_for_function(since, arg=1000 * still)

    def latency(self, moves: list[Any], kinds: tuple[str, ...] = ("plot",)) -> dict[str, float]:
        """Milliseconds from each of the moves (functions that make one) to the last picture that it changed."""
        times = []
        for move in moves:
            self.quiet()
            self.page.evaluate("window.__seen.moves.length = window.__seen.changes.length = 0")
            move()
            try:
                self.page.wait_for_function(
                    "kinds => window.__seen.changes.some(([kind]) => kinds.includes(kind))", arg=[*kinds],
                    timeout=10_000 if not times else 2000)  # fmt: skip
            except Exception:
                if not times:
                    raise
                continue  # a move that changed nothing, such as one beyond the end
            self.quiet(0.25)
            seen = self.page.evaluate("window.__seen")
            begun = seen["moves"][0][1]
            times.append(max(at for kind, at in seen["changes"] if kind in kinds) - begun)
        times.sort()
        return {"moves": len(times), "p50_ms": _quantile(times, 0.5), "p95_ms": _quantile(times, 0.95),
                "max_ms": round(times[-1], 1)}  # fmt: skip


def _quantile(times: list[float], q: float) -> float:
    return round(times[min(len(times) - 1, int(q * len(times)))], 1)


def keys(bench: Bench, locator: Any, names: list[str]) -> list[Any]:
    """Moves: keys pressed on a control."""

    def press(name: str) -> None:
        locator.press(name)

    return [lambda name=name: press(name) for name in names]


def studio(bench: Bench) -> dict[str, Any]:
    """Dragging ten seconds, and the first token after letting go."""
    page, dial = bench.page, bench.panel.locator(".wb-dial svg")
    dial.scroll_into_view_if_needed()
    box = dial.bounding_box()
    assert box

    def at(turn: float, radius: float) -> tuple[float, float]:
        import math

        unit = min(box["width"] / 3.96, box["height"] / 2.6)
        return (box["x"] + box["width"] / 2 + unit * radius * math.cos(turn),
                box["y"] + box["height"] / 2 - unit * radius * math.sin(turn))  # fmt: skip

    out: dict[str, Any] = {}
    page.mouse.move(*at(0.5, 0.7))
    page.mouse.down()
    out["preview while dragging"] = bench.latency(
        [lambda k=k: page.mouse.move(*at(0.61 + 0.11 * k, 0.7)) for k in range(MOVES)], ("words",))  # fmt: skip
    bench.code("beat.gap = 0")
    end, k = time.monotonic() + 10, 0
    while time.monotonic() < end:
        k += 1
        page.mouse.move(*at(0.03 * k, 0.7))
    last = page.evaluate("performance.now()")
    bench.quiet(0.5)
    settled = page.evaluate("window.__seen.changes.at(-1)[1]") - last
    gap = float(bench.code("print(beat.gap)"))
    out["dragging ten seconds"] = {"moves": k, "settled_ms": round(settled, 1), "gap_ms": round(1000 * gap, 1)}
    page.mouse.up()
    bench.quiet(1.5)
    first = []
    for k in range(8):
        page.mouse.move(*at(1.1 + 0.2 * k, 0.7))
        page.mouse.down()
        bench.quiet()
        page.evaluate("window.__seen.moves.length = window.__seen.changes.length = 0")
        page.evaluate("""() => { const said = () => document.querySelectorAll('.wb-two .wb-said')[1]?.textContent ?? '';
            window.__first = null; const before = said();
            const look = () => { const now = said();
                if (now && now.length < 40 && now !== before) window.__first = performance.now();
                else requestAnimationFrame(look); };
            requestAnimationFrame(look); }""")
        page.mouse.up()
        page.wait_for_function("() => window.__first !== null")
        released = [at for kind, at in page.evaluate("window.__seen.moves") if kind == "pointerup"][-1]
        first.append(page.evaluate("window.__first") - released)
        bench.quiet(1.5)
    first.sort()
    out["first steered token after release"] = {
        "releases": len(first), "p50_ms": _quantile(first, 0.5), "p95_ms": _quantile(first, 0.95),
        "max_ms": round(first[-1], 1)}  # fmt: skip
    return out


def sliders(*labels: str, kinds: tuple[str, ...] = ("plot",)) -> Any:
    """A measurement of sliders, moved by the arrow keys."""

    def measure(bench: Bench) -> dict[str, Any]:
        out = {}
        for label in labels:
            slider = bench.panel.locator(f".widget-inline-hbox:has(label:text-is('{label}')) .noUi-handle").first
            slider.scroll_into_view_if_needed()
            there = ["ArrowRight", "ArrowLeft"]
            names = [there[(k // 5) % 2] for k in range(MOVES)]
            bench.code("beat.gap = 0")
            out[label] = bench.latency(keys(bench, slider, names), kinds)
            out[label]["gap_ms"] = round(1000 * float(bench.code("print(beat.gap)")), 1)
        return out

    return measure


def dropdowns(**chosen: list[str]) -> Any:
    """A measurement of dropdowns, set to one after the other, twice over."""

    def measure(bench: Bench) -> dict[str, Any]:
        out = {}
        for label, names in chosen.items():
            control = bench.panel.get_by_label(label, exact=True).first
            moves = [lambda name=name, control=control: control.select_option(label=name) for name in names * 4]
            out[label] = bench.latency(moves)
        return out

    return measure


def handle(bench: Bench) -> dict[str, Any]:
    """The gate's threshold, dragged on the histogram."""
    page, line = bench.page, bench.panel.locator(".wb-handle:visible").first
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    bench.code("beat.gap = 0")
    out = bench.latency([lambda k=k: page.mouse.move(x - 6 * (k % 20) - 3, y) for k in range(MOVES)], TOLD)
    out["gap_ms"] = round(1000 * float(bench.code("print(beat.gap)")), 1)
    page.mouse.up()
    return {"threshold dragged": out}


MEASURED = {
    "studio": [studio],
    "probe explorer": [sliders("layer", "C, log scale"), dropdowns(value=["power", "security", "hedonism"])],
    "geometry": [sliders("layer")],
    "gate tuner": [handle, sliders("above P(related), logit", kinds=TOLD)],
}


def main() -> None:
    browser_path = chromium()
    if browser_path is None:
        raise SystemExit("No Chromium or Chrome: nothing to measure with.")
    wanted = sys.argv[1:] or list(PANELS)
    found: dict[str, Any] = {}
    tall = {"viewport": {"width": 1500, "height": 1600}}
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as lab, browsing(browser_path) as new_page:
        cells = notebook_of(SETUP, *(PANELS[name] for name in wanted))
        page = run_all(lambda: new_page(**tall), lab, cells, "panels.ipynb")
        if problems := errors(page):
            raise SystemExit(str(problems))
        page.wait_for_timeout(8000)  # what panels find ahead while nobody asks for anything
        for number, name in enumerate(wanted):
            bench = Bench(page, name, number)
            found[name] = {}
            for measure in MEASURED[name]:
                try:
                    found[name] |= measure(bench)
                except Exception as problem:  # the others are measured all the same
                    print(f"{name}: not measured: {problem}", flush=True)
            print(name, json.dumps(found[name], indent=1), flush=True)
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps({**kept, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
