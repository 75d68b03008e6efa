"""The results browser: the answers of an evaluation through filters, page by page, one of them in full.

A view of `ResultsState`. The browser is sent a page of rows and two whole answers, whatever the size of the table.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as w
import pandas as pd

from ..evaluation.results import Evaluation
from ..values import VALUES
from .answers import MEANING, STYLE, boxed, score, verdict
from .panel import ROW, Panel
from .quoting import line, quoted, quoted_line
from .states.results import AGREE, DISAGREE, PAGE, Rate, ResultsState

NAMES = {
    "method": "method", "value": "value steered", "about": "asked about", "set": "questions", "prompt": "prompt",
    "temperature": "temperature", "seed": "seed", "score": "score", "fluent": "fluent", "gate": "gate",
    "differs": "beside base", "judges": "judges",
}  # fmt: skip
TOLD: dict[str, dict[Any, str]] = {
    "set": {"own": "the value's own", "pooled": "pooled, of all ten", "hard": "hard unrelated"},
    "prompt": {"none": "plain", "negative": "negative prompt before"},
    "temperature": {0.0: "0 (greedy)"}, "about": {"": "no value"},
    "score": {"1": "1: acts on it", "between": "between 0 and 1", "0": "0: does not", "missing": "not judged"},
    "fluent": {"yes": "fluent", "no": "not fluent", "missing": "not judged"},
    "gate": {"yes": "open", "no": "closed", "missing": "not told"},
    "differs": {"yes": "differs", "no": "the same text", "missing": "no base answer"},
    "judges": {DISAGREE: "any two disagree", AGREE: "all agree"},
}  # fmt: skip
TIPS = {
    "score": "What the evaluation's judge said of the steered value",
    "gate": "Whether the gate let the method act",
    "differs": "The text beside what the base said to the same question and seed",
    "judges": "On the steered value, among answers that two or more judged",
}


def results_browser(
    evaluation: Evaluation | str | Path, others: Mapping[str, Evaluation | pd.DataFrame] | None = None,
    folder: str | Path = ".", **filters: Any,
) -> "ResultsBrowser":  # fmt: skip
    """A browser of an evaluation's answers.

    evaluation: of `study` or `open_evaluation`, or its folder. others: name -> what another judge said of the same
    answers: an evaluation, a table that `judged` made, or an export of `annotate`. folder: where the button writes CSV.
    filters: settings to begin with, those of `ResultsState`, such as method="ConVA", value="power", score="0".
    """
    return ResultsBrowser(ResultsState(evaluation, others, folder, **filters))


class ResultsBrowser(Panel):
    """The panel; `controls` by filter, `pick` chooses a row of the page."""

    label = "Results browser"

    def __init__(self, state: ResultsState):
        super().__init__(state)
        self._telling = False
        self.controls: dict[str, Any] = {name: self._dropdown(name) for name in NAMES}
        self.controls["text"] = self.bind("text", w.Text(
            description="text", placeholder="in question or answer", layout=w.Layout(width="min(100%, 34em)"),
            tooltip="Plain text, upper and lower case alike", style=dict(description_width="7.5em")))  # fmt: skip
        self.everything = self._button("Clear filters", "undo", state.clear, "Let all answers through")
        self.save = self._button("Export CSV", "download", self._export, "Write the answers that match to a new file")
        self.steps = [
            self._button("Page back", "angle-double-left", lambda: state.move(-PAGE), f"{PAGE} answers back"),
            self._button("Previous", "angle-left", lambda: state.move(-1), "One answer back"),
            self._button("Next", "angle-right", lambda: state.move(1), "One answer on"),
            self._button("Page on", "angle-double-right", lambda: state.move(PAGE), f"{PAGE} answers on"),
        ]
        self.pick = w.ToggleButtons(options=["1"], tooltip="Look at this answer")
        self.pick.add_class("wb-pick")
        self.pick.observe(self._picked, "index")
        self.summary, self.place, self.written, self.page, self.detail = (w.HTML() for _ in range(5))
        self.page.add_class("wb-page")
        rows = w.HBox([self.pick, self.page])
        rows.add_class("wb-browse")
        self.lay_out(
            w.HTML(STYLE + about(state)),
            w.HBox([control for name, control in self.controls.items() if name != "text"], layout=ROW),
            w.HBox([self.controls["text"], self.everything, self.save, self.written], layout=ROW),
            self.summary, rows, w.HBox([*self.steps, self.place], layout=ROW), self.detail,
        )  # fmt: skip
        self.follow("matches", self._tell_summary)
        self.follow(["matches", "position"], self._tell)
        self._tell_summary()
        self._tell()

    def _dropdown(self, name: str) -> w.Dropdown:
        choices = self.state.choices[name]
        told = [TOLD.get(name, {}).get(choice) or _named(choice) for choice in choices[1:]]
        several = len(choices) > (1 if name == "judges" else 2)
        control = w.Dropdown(options=[(text, k) for k, text in enumerate(["any", *told])], description=NAMES[name],
                             tooltip=TIPS.get(name, ""), style=dict(description_width="7.5em"),
                             layout=w.Layout(width="21em", display=None if several else "none"))  # fmt: skip
        return self.bind(name, control, choices.index, lambda k: choices[k])

    def _button(self, name: str, icon: str, act: Any, tip: str) -> w.Button:
        button = w.Button(description=name, icon=icon, tooltip=tip)
        button.on_click(lambda _: self.guarded(act))
        return button

    # -- acting --------------------------------------------------------------------------------------------------------

    def _picked(self, change: Any) -> None:
        if not self._telling and change["new"] is not None:
            self.guarded(self._go, change["new"])

    def _go(self, place: int) -> None:
        self.state.move(place - self.state.position % PAGE)

    def _export(self) -> None:
        self.start(self.state.exporting())

    def ended(self) -> None:
        told = {"running": "writing …", "done": f"written: <code>{html.escape(self.state.exported)}</code>"}
        self.written.value = f'<span class="wb-small" role="status">{told.get(self.ending, "")}</span>'

    # -- showing -------------------------------------------------------------------------------------------------------

    def _tell_summary(self) -> None:
        self.summary.value = summary(self.state)

    def _tell(self) -> None:
        state = self.state
        first = state.position - state.position % PAGE
        self._telling = True
        try:
            numbers = [f"{first + k + 1:,}" for k in range(len(state.page))]
            with self.pick.hold_sync():
                if list(self.pick.options) != numbers:
                    self.pick.options = numbers
                self.pick.index = state.position - first if numbers else None
        finally:
            self._telling = False
        self.page.value, self.detail.value = page(state), detail(state)
        total = len(state.matches)
        told = f"Answer <b>{state.position + 1:,}</b> of {total:,}" if total else ""
        self.place.value = f'<span role="status">{told}</span>'


def _named(choice: Any) -> str:
    if isinstance(choice, tuple):
        return " ≠ ".join(line(name, 24) for name in choice)
    return f"{choice:g}" if isinstance(choice, float) else line(choice, 60)


def about(state: ResultsState) -> str:
    """What is browsed, and what its numbers mean."""
    answers = state.answers
    model = answers.evaluation.provenance.get("model", {})
    model = model.get("model", "an unnamed model") if isinstance(model, dict) else model
    judges = ", ".join(quoted_line(name, 40) for name in state.said)
    told = (f"{len(answers):,} answers of {quoted_line(model, 60)}, {len(answers.choices['method'])} methods; judged "
            f"by {judges}. Scores are of the value that was steered. {MEANING}.")  # fmt: skip
    return f'<div class="wb-small">{told}</div>'


def summary(state: ResultsState) -> str:
    """How many match, and their rates."""
    told = [f"<b>{len(state.matches):,}</b> of {len(state.answers):,} answers match"]
    if len(state.matches):
        told.append(f"Control rate (CSR): {_rate(state.rate())}.")
        told.append(f"Fluent (FR): {_rate(state.rate('fluent'))}.")
        two, agree = state.agreement()
        if len(state.said) > 1:
            share = f" and agree on the steered value in <b>{100 * agree / two:.0f}&nbsp;%</b>" if two else ""
            told.append(f"Two judges or more judged {two:,} of them{share}.")
    else:
        told[0] += ": clear a filter to see more"
    return f'<div class="wb-claim" role="status">{"<br>".join(told)}</div>'


def _rate(rate: Rate) -> str:
    if not rate.questions:
        return "none was judged"
    questions = f"{rate.questions:,} question" + "s" * (rate.questions != 1)
    return (f"<b>{rate.mean:.3f}</b>, 95&nbsp;% interval {rate.low:.3f} to {rate.high:.3f} (Wilson, {questions}, "
            f"{rate.answers:,} judged answers)")  # fmt: skip


def page(state: ResultsState) -> str:
    """The rows of the page; the one that is looked at is marked."""
    answers, table = state.answers, state.answers.table
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("question", "answer", "method", "value"))
    for name in state.said:
        whole = html.escape(line(name, 200))
        heads += f'<th scope="col" class="wb-score" title="{whole}">{quoted_line(name, 24)}</th>'
    widths = ["26%", "auto", "8.5em", "8em", *["8.5em"] * len(state.said)]
    columns = "".join(f'<col style="width:{width}">' for width in widths)
    rows = []
    for row in state.page:
        told = [table["question"].iat[row], answers.texts[row] or table["note"].iat[row], table["method"].iat[row],
                table["value"].iat[row]]  # fmt: skip
        cells = "".join(f"<td>{quoted_line(text, 160)}</td>" for text in told)
        cells += "".join(f'<td class="wb-score">{score(said)}</td>' for said in state.own[row])
        chosen = ' class="wb-chosen" aria-selected="true"' if row == state.row else ""
        rows.append(f"<tr{chosen}>{cells}</tr>")
    return (f'<table class="wb-rows" aria-label="Answers that match"><colgroup>{columns}</colgroup>'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>")  # fmt: skip


def detail(state: ResultsState) -> str:
    """The answer that is looked at, in full, beside the base's to the same question and seed."""
    row = state.row
    if row is None:
        return ""
    answers, told = state.answers, state.answers.table.iloc[row]
    steered, base = str(told["value"]), int(answers.base[row])
    how = [f"T = {told['temperature']:g}" if told["temperature"] else "greedy", f"seed {told['seed']}"]
    how += ["behind a negative prompt"] if told["prompt"] == "negative" else []
    gate = {1.0: "gate open", 0.0: "gate closed"}.get(float(state._gate[row]))
    how += [gate] if gate else []
    name, base_name = quoted_line(told["method"], 60), quoted_line(answers.base_name, 60)
    if base == row:
        cards = [_card(state, row, steered, f"{name}, which everything is read against; scored for {steered}")]
    else:
        cards = [_card(state, row, steered, f"{name}, steering {steered}")]
        if base < 0:
            cards.append(f'<div class="wb-card"><h4>{base_name}</h4>It was not asked the same.</div>')
        else:
            same = "" if answers.differs[row] else ": the same text"
            cards.append(_card(state, base, steered, f"{base_name}, same question and seed{same}"))
    about = told["about"] if told["about"] in VALUES else "no value"
    foot = f"{quoted_line(told['set'], 30)} question about {about}; {', '.join(how)}; row {row:,} of the table"
    return (f'<div class="wb-asked"><b>Question:</b> {quoted(told["question"])}</div>'
            f'<div class="wb-two">{"".join(cards)}</div><div class="wb-small">{foot}</div>')  # fmt: skip


def _card(state: ResultsState, row: int, steered: str, title: str) -> str:
    read = [verdict(name, said[row], fluent[row], steered) for name, (said, fluent) in state.said.items()]
    return (f'<div class="wb-card"><h4>{title}</h4>{boxed(state.answers, row)}'
            f'<div class="wb-small wb-read">{"<br>".join(read)}</div></div>')  # fmt: skip
