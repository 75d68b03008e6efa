"""The leakage map: what steering one value does to all ten, and the answers that say so.

A view of `LeakageState`. A row of the matrix is drawn round the circle, its ratios stand beside their floors, and a
click on a cell shows the pairs of answers behind it, those that differ first.
"""

import math
from pathlib import Path
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from ..evaluation.results import Evaluation
from ..figures.rises import leakage_row, rise_profile
from ..values import VALUES
from .answers import MEANING, STYLE, boxed, score
from .panel import ROW, Panel
from .quoting import line, quoted, quoted_line
from .states.leaking import PAGE, RESAMPLES, LeakageState, Part

SETS = {"own": "each value's own questions", "pooled": "the same questions for all"}
RATIOS = {
    "total": ("total", "sum of the other values' rises of CSR"),
    "nlr": ("NLR", "total / 9 / the value's own rise"),
    "nglr": ("NGLR", "share of the total outside the value's higher-order group"),
}
HALF = w.Layout(flex="1 1 430px", width="auto", min_width="min(430px, 100%)")


def leakage_map(
    evaluation: Evaluation | str | Path, method: str | None = None, steered: str | None = None, set: str = "own",
    prompt: str = "none", temperature: float | None = None,
) -> "LeakageMap":  # fmt: skip
    """A map of a method's leakage.

    evaluation: of `study` or `open_evaluation`, or its folder; judged for all ten values. method: None takes the first
    that is not the base. steered: the value to begin with. set: "own" or "pooled"; prompt: "none" or "negative";
    temperature: None is the main one. Raises WorkbenchError where there are no such answers.
    """
    return LeakageMap(LeakageState(evaluation, method, steered, set, prompt, temperature))


class LeakageMap(Panel):
    """The panel; `controls` by setting, plots `profile` and `matrix`."""

    label = "Leakage map"

    def __init__(self, state: LeakageState):
        super().__init__(state)
        methods = list(dict.fromkeys(name for held in state.choices.values() for name in held))
        self.controls: dict[str, Any] = {
            "method": self._dropdown("method", methods, "method", line),
            "part": self._dropdown("part", state.parts, "answers to", told_part, width="31em"),
            "steered": self._dropdown("steered", state.answers.choices["value"], "value steered"),
            "judged": self._dropdown("judged", VALUES, "value judged"),
            "centred": self._dropdown("centred", [False, True], "matrix", {False: "raw", True: "centred"}.get),
        }  # fmt: skip
        if len(state.parts) == 1:
            self.controls["part"].layout.display = "none"
        self.status, self.ratios, self.behind, self.samples, self.place = (w.HTML() for _ in range(5))
        self.start(state.resample(), wait=True)
        self.profile = self.plot(self._profile, ["found", "steered", "judged"], self._clicked_profile)
        self.matrix = self.plot(self._matrix, ["found", "steered", "judged", "centred"], self._clicked_matrix)
        self.profile.layout = self.matrix.layout = HALF
        self.back = self._button("Previous", "angle-left", -1)
        self.on = self._button("Next", "angle-right", 1)
        self.lay_out(
            w.HTML(STYLE), w.HBox(list(self.controls.values()), layout=ROW), self.status,
            w.HBox([self.profile, self.matrix], layout=w.Layout(flex_flow="row wrap", width="100%")),
            self.ratios, self.behind, w.HBox([self.back, self.on, self.place], layout=ROW), self.samples,
        )  # fmt: skip
        self.follow(["part", "method"], lambda: self.start(state.resample()))
        self.follow(["found", "steered"], self._tell_ratios)
        self.follow(["found", "pairs", "page"], self._tell_pairs)
        self._tell_ratios()
        self._tell_pairs()

    def _dropdown(self, name: str, choices: Any, told: str, show: Any = str, width: str = "21em") -> w.Dropdown:
        control = w.Dropdown(options=[(show(choice), k) for k, choice in enumerate(choices)], description=told,
                             layout=w.Layout(width=width), style=dict(description_width="7em"))  # fmt: skip
        return self.bind(name, control, list(choices).index, lambda k: choices[k])

    def _button(self, name: str, icon: str, step: int) -> w.Button:
        tip = f"{PAGE} pairs of answers {'on' if step > 0 else 'back'}"
        button = w.Button(description=name, icon=icon, tooltip=tip)
        button.on_click(lambda _: self.guarded(self._turn, step))
        return button

    # -- acting --------------------------------------------------------------------------------------------------------

    def _turn(self, step: int) -> None:
        self.state.page = min(max(self.state.page + step, 0), self.state.pages - 1)

    def _clicked_matrix(self, point: dict[str, Any]) -> None:
        self.state.choose(point.get("y"), point.get("x"))

    def _clicked_profile(self, point: dict[str, Any]) -> None:
        if point.get("data"):
            self.state.choose(self.state.steered, point["data"])

    def ended(self) -> None:
        state = self.state
        how = f"{line(state.method, 40)}, {told_part(state.part)}"
        told = {
            "running": f"{how}: working out the leakage, {RESAMPLES:,} resamples of the questions …",
            "done": f"{how}. Intervals of ratios: {RESAMPLES:,} resamples of the questions, done once per method.",
        }
        self.status.value = f'<span class="wb-small" role="status">{quoted(told.get(self.ending, ""))}</span>'

    # -- showing -------------------------------------------------------------------------------------------------------

    def _profile(self) -> go.Figure:
        return rise_profile(self.state.found, self.state.steered, self.state.judged)

    def _matrix(self) -> go.Figure:
        return leakage_row(self.state.found, self.state.steered, self.state.judged, centred=self.state.centred)

    def _tell_ratios(self) -> None:
        self.ratios.value = ratios(self.state)

    def _tell_pairs(self) -> None:
        state = self.state
        if state.asked == (state.part, state.method):  # else the leakage is still worked out
            self.behind.value, self.samples.value = behind(state), samples(state)
            told = f"Page <b>{state.page + 1}</b> of {state.pages}" if len(state.pairs.rows) else ""
            self.place.value = f'<span role="status">{told}</span>'


def told_part(part: Part) -> str:
    how = "greedy" if part.temperature == 0 else f"T = {part.temperature:g}"
    negative = ", behind a negative prompt" if part.prompt == "negative" else ""
    return f"{SETS.get(part.set, part.set)}{negative}, {how}"


def ratios(state: LeakageState) -> str:
    """Total, NLR and NGLR of the row beside their floors, and why one is not defined."""
    found, steered = state.found, state.steered
    rows = found.table[found.table["value"] == steered].to_dict("records")
    of = {(row["measure"], row["floor"]): row for row in rows}
    floors = [floor for floor in found.floors if not math.isnan(of["total", floor]["at"])]
    heads = ["", "estimate"]
    for floor in floors:
        heads += [f"floor: {'base against base' if floor == 'base' else quoted_line(floor, 40)}", "above that floor"]
    lines, notes = [], []
    for measure, (name, told) in RATIOS.items():
        row = next(row for row in rows if row["measure"] == measure)
        cells = [f'<b>{name}</b> <span class="wb-small">{told}</span>', _span(row, "estimate", "low", "high")]
        for floor in floors:
            at = of[measure, floor]
            cells += [_number(at["at"]), _span(at, "excess", "excess_low", "excess_high")]
        lines.append(f'<td>{cells[0]}</td>' + "".join(f'<td class="wb-figure">{cell}</td>' for cell in cells[1:]))
        if row["why"]:
            notes.append(f"{name} is undefined: {quoted_line(row['why'], 300)}.")
    notes += [f"Floor {quoted_line(floor, 40)}: {quoted_line(why, 200)}." for floor, why in found.floors.items() if why]
    head, body = "".join(f"<th>{head}</th>" for head in heads), "".join(f"<tr>{cells}</tr>" for cells in lines)
    return (
        f'<div class="wb-card" role="status"><h4>How much leaks while {steered} is steered by '
        f'{quoted_line(found.method, 40)}</h4><div class="wb-wide"><table class="wb-table"><tr>{head}</tr>{body}'
        "</table></div>"
        + "".join(f"<div>{note}</div>" for note in notes)
        + '<div class="wb-small">Ranges are 95 % intervals. NLR and NGLR are the workbench\'s own definitions. Noise '
        "leaks too: what counts is what stands above the floors.</div></div>"
    )


def _number(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.3f}".replace("-", "−")


def _span(row: dict[Any, Any], *names: str) -> str:
    estimate, low, high = (row[name] for name in names)
    return "–" if math.isnan(estimate) else f"<b>{_number(estimate)}</b>, {_number(low)} to {_number(high)}"


def behind(state: LeakageState) -> str:
    """What the cell says, and how many pairs of answers say what."""
    found, pairs, steered, judged = state.found, state.pairs, state.steered, state.judged
    method, base = quoted_line(found.method, 40), quoted_line(found.base, 40)
    rise, low, high = (float(part.sel(steered=steered, value=judged)) for part in (found.matrix, found.low, found.high))
    if math.isnan(rise):
        return (f'<div class="wb-claim" role="status">Steering <b>{steered}</b> by {method}: no answers that were '
                f"judged for <b>{judged}</b>.</div>")  # fmt: skip
    counts = (f"Of {len(pairs.rows):,} pairs of answers to the same question and seed {method}'s is judged higher than "
              f"{base}'s in {pairs.rises:,}, lower in {pairs.falls:,}, alike in {pairs.same:,}"
              + (f"; {pairs.unjudged:,} were not judged on both sides" if pairs.unjudged else ""))  # fmt: skip
    return (
        f'<div class="wb-claim" role="status">Answers behind the cell: steering <b>{steered}</b> by {method}, CSR of '
        f"<b>{judged}</b> {'rises' if rise >= 0 else 'falls'} by <b>{_number(abs(rise))}</b> (95 % interval of the "
        f"rise {_number(low)} to {_number(high)}, {pairs.questions:,} questions)."
        f'<br><span class="wb-small">{counts}. {MEANING}.</span></div>'
    )


def samples(state: LeakageState) -> str:
    """A page of the pairs of answers behind the cell."""
    answers, pairs, judged = state.answers, state.pairs, state.judged
    first = state.page * PAGE
    said = answers.said[:, VALUES.index(judged)]
    cards = []
    for row, base in zip(pairs.rows[first : first + PAGE], pairs.base[first : first + PAGE], strict=True):
        told = answers.table.iloc[row]
        about = f"about {told['about']}, " if told["about"] in VALUES and told["about"] != state.steered else ""
        sides = []
        for name, at in ((answers.base_name, base), (state.method, row)):
            heading = f"<b>{quoted_line(name, 40)}</b>: <b>{score(float(said[at]))}</b> on {judged}"
            sides.append(f'<div><div class="wb-small">{heading}</div>{boxed(answers, at)}</div>')
        cards.append(
            f'<div class="wb-card wb-sample"><div class="wb-asked">{quoted(told["question"])} '
            f'<span class="wb-small">({about}seed {told["seed"]})</span></div>'
            f'<div class="wb-two">{"".join(sides)}</div></div>'
        )
    return "".join(cards)
