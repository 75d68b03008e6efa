"""The page: sections made of blocks, put into one HTML file that asks nothing of any network.

The page's own scripts are named by their hashes in its content security policy, so that no other script would run even
if a text got past the escaping.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from plotly.offline import get_plotlyjs

from .. import figures
from ..errors import WorkbenchError
from ..evaluation.comparison import compare, non_inferior
from ..figures.evaluating import variant
from ..probes.files import written_whole
from .blocks import Block, attempt, cell, entries, figure, fold, frame, heading, missing, number, table, text
from .cautions import cautions
from .samples import LIMIT, samples
from .tables import MEASURES, METRICS, by_value, headline, latex, main_temperature, measured, whole, winners

if TYPE_CHECKING:
    from ..evaluation.leakage import Leakage
    from ..evaluation.results import Evaluation

MARGIN = 0.02  # the most that unrelated accuracy may lose


def write_report(ev: "Evaluation", path: str | Path) -> Path:
    """Write the report to `path` (.html), and beside it table.csv and table.tex. Returns the path.

    The page holds all it needs, plotly.js too (some 5 MB), follows the reader's light or dark scheme and prints. What
    an evaluation does not hold is said where it would stand. Raises WorkbenchError for another ending, and for an
    evaluation without answers to own questions.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise WorkbenchError(f"A report was to be written as {path.name!r}.", allowed="a name that ends in .html")
    if ev.pick().empty:
        raise WorkbenchError("A report was to be written.", found="no answers to own questions",
                             do="Evaluate questions of the steered values first.")  # fmt: skip
    told = Told(ev)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path.with_name("table.csv")) as partial:
        told.whole.to_csv(partial, index=False, encoding="utf-8", lineterminator="\n")
    with written_whole(path.with_name("table.tex")) as partial:
        partial.write_bytes(latex(ev, told.head, told.values, told.best).encode("utf-8", "backslashreplace"))
    with written_whole(path) as partial:
        partial.write_bytes(_html(told).encode("utf-8", "backslashreplace"))
    return path


class Told:
    """What several sections read: leakage of every method, the tables, which numbers stand bold."""

    def __init__(self, ev: "Evaluation"):
        self.ev, self.main = ev, main_temperature(ev)
        self.methods = list(dict.fromkeys(ev.answers["method"]))
        self.others = [method for method in self.methods if method != ev.base]
        self.leakages: dict[str, Leakage] = {}
        self.pooled: dict[str, Leakage] = {}
        self.without: dict[str, str] = {}  # method -> why its leakage is not there
        for found, set_ in ((self.leakages, "own"), (self.pooled, "pooled")):
            for method in self.others if len(ev.pick(set_)) else ():
                try:
                    found[method] = ev.leakage(method, pooled=set_ == "pooled")
                except WorkbenchError as error:
                    self.without.setdefault(method, error.found or str(error))
        self.head, self.values = headline(ev, self.leakages), by_value(ev, self.leakages)
        self.whole = whole(self.head, self.values)
        self.best = {column: winners(ev.pick("unrelated" if metric == "right" else "own"), metric)
                     for column, metric in METRICS.items()}  # fmt: skip

    @property
    def plain(self) -> pd.DataFrame:
        """The headline's rows at the main temperature without a prompt."""
        return self.head[(self.head["prompt"] == "none") & (self.head["temperature"] == self.main)]


def _html(told: Told) -> str:
    from jinja2 import Environment, StrictUndefined

    ev, about = told.ev, told.ev.provenance["model"]
    page = files("workbench.report")
    script, plotly = page.joinpath("page.js").read_text(encoding="utf-8"), get_plotlyjs()
    sections = [{"id": name, "title": title, "blocks": build(told)} for name, (title, build) in SECTIONS.items()]
    drawn: dict[str, Any] = {}
    for section in sections:
        for block in _figures(section["blocks"]):
            block["id"] = f"figure-{len(drawn) + 1}"
            drawn[block["id"]] = {"light": block.pop("light"), "dark": block.pop("dark")}
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    env.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    facts = [
        f"{len(ev.answers):,} answers", f"{len(told.methods)} methods", f"{ev.answers['value'].nunique()} values",
        f"T = {told.main:g}", f"judge: {ev.provenance.get('judge') or 'none'}",
        f"made {ev.provenance.get('made', 'at an unknown time')}",
    ]  # fmt: skip
    return env.from_string(page.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        title=f"Steering values in {about.get('model', 'a model')}: control, fluency, leakage, capability",
        facts=" · ".join(facts), sections=sections, data={"figures": drawn, "samples": samples(ev)}, plotly=plotly,
        script=script, hashes=[_hash(plotly), _hash(script)],
    )  # fmt: skip


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _figures(blocks: list[Block]) -> Iterator[Block]:
    for block in blocks:
        if block["kind"] == "figure":
            yield block
        yield from _figures(block.get("blocks", []))


# -- sections ------------------------------------------------------------------------------------------------------


def _headline(told: Told) -> list[Block]:
    head, beside = told.plain, [t for t in told.ev.provenance["temperatures"] if t != told.main]
    names = ["method", "CSR", "FR", "unrelated accuracy", "hard unrelated intact", "NLR", "NGLR", "questions"]
    other = {t: told.head[(told.head["prompt"] == "none") & (told.head["temperature"] == t)].set_index("method")
             for t in beside}  # fmt: skip
    names += [f"{rate} at {'T = 0 (greedy)' if t == 0 else f'T = {t:g}'}" for t in other for rate in ("CSR", "FR")]
    rows = []
    for row in head.to_dict("records"):
        method = row["method"]
        cells = [cell(method), *(
            number(row[c], row[low], row[high], told.best.get(c, {}).get("all") == method)
            for c, low, high in (("csr", "low", "high"), ("fr", "fr_low", "fr_high"))
        )]  # fmt: skip
        for c in ("unrelated", "intact"):
            measured = row.get(c) is not None and (c == "unrelated" or method != told.ev.base)
            cells.append(number(row[c], row[f"{c}_low"], row[f"{c}_high"], told.best.get(c, {}).get("all") == method)
                         if measured else cell("–"))  # fmt: skip
        cells += [_leak(row, name) if method in told.leakages else cell("–") for name in MEASURES]
        cells.append(cell(row["n"]))
        for table_ in other.values():
            own = table_.loc[method] if method in table_.index else None
            cells += [cell("–") if own is None else number(*own[list(columns)])
                      for columns in (("csr", "low", "high"), ("fr", "fr_low", "fr_high"))]  # fmt: skip
        rows.append(cells)
    return [
        text(
            f"Means over the values while each is steered, at T = {told.main:g}, with 95 % intervals beneath. CSR: how "
            "far answers act on the steered value (1, .5, 0), those that a gate left alone too. FR: share of fluent "
            "answers. Hard unrelated intact: share of hard unrelated prompts that are answered word for word as by "
            f"{told.ev.base}. NLR and NGLR, how much and how far other values rise, are the workbench's own "
            "definitions; beneath them their noise floor and of how many values they are the mean. A dash was not "
            "measured."
        ),
        table(names, rows, "Bold: better than every other method in the exact paired test, after Holm's correction."),
        text("Read it together with “What may not be concluded” at the end. The same numbers, and those by value, lie "
             "beside this page as table.csv and table.tex."),
    ]  # fmt: skip


def _leak(row: Mapping[Any, Any], name: str) -> dict[str, str]:
    shown = number(row[name], row[f"{name}_low"], row[f"{name}_high"])
    lines = [shown["more"], "" if pd.isna(row[f"{name}_floor"]) else f"floor {row[f'{name}_floor']:.3f}",
             f"of {row[f'{name}_defined']:.0f} values"]  # fmt: skip
    return {**shown, "more": "\n".join(filter(None, lines))}


def _paired(told: Told) -> list[Block]:
    ev = told.ev

    def together(metric: str, name: str) -> list[Block]:
        rows = compare(ev.pick("unrelated" if metric == "right" else "own"), ev.base, metric)
        rows = rows[rows["value"] == "all"]
        if rows["difference"].isna().all():
            raise WorkbenchError(name, found="nothing was judged for it")
        return [figure(figures.forest(rows, base=ev.base, measure=name))]

    def by_values() -> Block:
        rows = compare(ev.pick(), ev.base)
        return fold("CSR, value by value", [figure(figures.forest(rows, base=ev.base))])

    def kept() -> list[Block]:
        if not len(ev.pick("unrelated")):
            raise WorkbenchError("", found="no unrelated prompts were asked")
        rows = non_inferior(ev.pick("unrelated"), ev.base, MARGIN)
        rows = rows[rows["value"] == "all"]
        told_ = rows.assign(inside=["yes" if inside else "no" for inside in rows["inside"]])
        return [frame(told_, {"method": "method", "loss": "loss", "bound": "95 % upper bound",
                              "inside": f"below {MARGIN:g}", "n": "prompts"},
                      f"Loss of unrelated accuracy against {ev.base}, one-sided bound.")]  # fmt: skip

    return [
        text(f"Every method against {ev.base} on the same questions and seeds: the exact sign-flip test (McNemar's, "
             "where scores are 0 or 1), intervals for paired differences, Holm's correction over the methods. Near 0 "
             "and 1 intervals are wide: there a difference may be significant whose interval still holds 0."),
        *attempt("CSR against Base", lambda: together("csr", "CSR")),
        *attempt("CSR value by value", by_values),
        *attempt("FR against Base", lambda: together("fr", "FR")),
        *attempt("Unrelated accuracy against Base", lambda: together("right", "unrelated accuracy")),
        *attempt("Loss of unrelated accuracy", kept),
    ]  # fmt: skip


def _circle(told: Told) -> list[Block]:
    rows = told.values[(told.values["prompt"] == "none") & (told.values["temperature"] == told.main)]
    return attempt("CSR round the circle", lambda: figure(figures.csr_circle(rows, base=told.ev.base)))


def _pareto(told: Told) -> list[Block]:
    found = []
    for x, name in (("fr", "fluency"), ("unrelated", "unrelated accuracy"), ("intact", "hard unrelated prompts")):
        if x in told.plain and told.plain[x].notna().any():
            found.append(figure(figures.pareto(told.plain, x, base=told.ev.base)))
        else:
            found.append(missing(f"Control against {name}: not shown, since it was not measured."))
    return found


def _leakage(told: Told) -> list[Block]:
    found = [missing(f"Leakage of {method}: not shown. Found: {why}.") for method, why in told.without.items()]
    if not told.leakages:
        return found or [missing("Leakage: not shown, since there are no answers of another method than Base.")]
    found.append(text(
        "The workbench's own definition: Δᵢⱼ is the CSR of value j while i is steered, minus that of "
        f"{told.ev.base} on the same questions. NLR: mean positive Δᵢⱼ of the other nine over Δᵢᵢ. NGLR: the share of "
        "it that falls outside i's higher-order group. Noise alone makes both positive: read the excess over the "
        "floor. What is not defined says why."))  # fmt: skip
    found += attempt("Leakage by steps", lambda: figure(figures.leakage_by_step([*told.leakages.values()])))
    found += attempt("Floors", lambda: _floors(told.leakages, "each value's own questions"))
    if told.pooled:
        found += attempt("Floors on pooled questions", lambda: _floors(told.pooled, "pooled questions"))
    found += _matched(told)
    for method, leakage in told.leakages.items():
        found.append(fold(f"{method}: circle, matrix, every value", [
            figure(figures.leakage_circle(leakage)), figure(figures.leakage_matrix(leakage)),
            figure(figures.leakage_matrix(leakage, centred=True)), _each(leakage),
            *([heading("On pooled questions"), figure(figures.leakage_matrix(told.pooled[method]))]
              if method in told.pooled else []),
        ]))  # fmt: skip
    return found


def _floors(leakages: Mapping[str, "Leakage"], where: str) -> list[Block]:
    """Means over the values of NLR and NGLR beside every floor, and as excess over it."""
    found, floors = [], list(dict.fromkeys(floor for one in leakages.values() for floor in one.floors))
    for measure in MEASURES:
        rows = []
        for method, leakage in leakages.items():
            mean = leakage.table[(leakage.table["value"] == "mean") & (leakage.table["measure"] == measure)]
            own, by_floor = mean.iloc[0], {row["floor"]: row for row in mean.to_dict("records")}
            beside = [number(*(by_floor[floor][column] for column in columns)) for floor in floors
                      for columns in (["at"], ["excess", "excess_low", "excess_high"])]  # fmt: skip
            rows.append([cell(method), number(own["estimate"], own["low"], own["high"]), *beside,
                         cell(own["why"], look="text")])  # fmt: skip
        beside = [name for floor in floors for name in (f"floor: {floor}", "excess over it")]
        head = ["method", measure.upper(), *beside, "why undefined"]
        found.append(table(head, rows, f"{measure.upper()} beside its floors, means over the values, on {where}."))
    notes = dict.fromkeys(f"Floor “{floor}”: {why}." for one in leakages.values()
                          for floor, why in one.floors.items() if why)  # fmt: skip
    return [*found, *([entries(notes)] if notes else [])]


def _each(leakage: "Leakage") -> Block:
    """NLR and NGLR of every value, with the reasons where there is none."""
    told, rows = measured(leakage).set_index(["measure", "value"]).to_dict("index"), []
    for value in dict.fromkeys(leakage.table["value"]):
        nlr, nglr = (told[measure, value] for measure in MEASURES)
        why = dict.fromkeys(w for w in (nlr["why"], nglr["why"]) if w)
        rows.append([cell(value), *(number(x["estimate"], x["low"], x["high"]) for x in (nlr, nglr)),
                     *(number(x["at"]) for x in (nlr, nglr)), cell("; ".join(why), look="text")])  # fmt: skip
    head = ["value steered", "NLR", "NGLR", "floor of NLR", "floor of NGLR", "why undefined"]
    return table(head, rows, "The workbench's own definitions.")


def _matched(told: Told) -> list[Block]:
    """Methods that were tuned to another's CSR, side by side with it."""
    from ..evaluation.leakage import at_matched

    found = []
    for goal in dict.fromkeys(m.partition(" at ")[2] for m in told.leakages if " at " in m):
        family = [goal, *(m for m in told.leakages if m.endswith(f" at {goal}"))]
        if goal in told.leakages:
            rows = at_matched(told.ev.pick(), family, told.ev.base)
            rows = rows.assign(method=[f"{a} − {b}" if b else a for a, b in
                                       zip(rows["method"], rows["against"], strict=True)])  # fmt: skip
            shown = [[cell(row["method"]), *(number(row[x], row[f"{x}_low"], row[f"{x}_high"])
                                             for x in ("gain", "total", "nlr"))] for row in rows.to_dict("records")]
            found.append(table(["method, or difference of two", "gain of CSR", "total leakage", "NLR"], shown,
                               f"At the CSR of {goal}: tuned to equal control on calibration questions."))  # fmt: skip
    return found or [missing("Leakage at equal control: not shown, since no method was tuned to another's CSR.")]


def _dose(told: Told) -> list[Block]:
    if not told.ev.tuning:
        return [missing("Dose and response: not shown, since no tuning came with this evaluation.")]
    return [fold(f"{method}: dose and response", attempt(method, lambda c=curve: figure(figures.dose_response(c))))
            for method, curve in told.ev.tuning.items()]  # fmt: skip


def _negative(told: Told) -> list[Block]:
    rows = told.head[told.head["temperature"] == told.main]
    return attempt("Negative prompts", lambda: figure(figures.negative_prompts(rows, base=told.ev.base)))


def _ablations(told: Told) -> list[Block]:
    parents = [m for m in told.methods if any(variant(other, m) for other in told.methods)]
    if not parents:
        return [missing("Ablations: not shown, since no method here is a variant of another (“ConVA, no gate”).")]
    return [attempt(f"Ablations of {of}", lambda of=of: figure(figures.ablations(told.plain, of, base=told.ev.base)))[0]
            for of in parents]  # fmt: skip


def _samples(told: Told) -> list[Block]:
    return [
        text("The same question, all methods. A seeded choice: all answers are in answers.parquet, where the "
             f"evaluation was kept. Answers are cut at {LIMIT} characters."),
        {"kind": "samples"},
    ]  # fmt: skip


def _provenance(told: Told) -> list[Block]:
    ev = told.ev
    facts = [[cell(name), cell(words, look="text")] for name, words in _flat(ev.provenance)]
    methods = [[cell(m), cell("; ".join(dict.fromkeys(map(str, by.values()))), look="text")]
               for m, by in ev.provenance.get("methods", {}).items()]  # fmt: skip
    used = table(["method", "what it says of itself"], methods)
    return [table(["fact", "as recorded"], facts), fold("Methods, as they were used for each value", [used])]


def _flat(told: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as lines; `methods` have a table of their own."""
    if isinstance(told, Mapping):
        for key, inner in told.items():
            if key != "methods":
                yield from _flat(inner, f"{name}, {key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, told)) if isinstance(told, list) else str(told)


def _cautions(told: Told) -> list[Block]:
    return [entries(cautions(told.ev, told.plain, told.leakages))]


SECTIONS = {
    "headline": ("Headline", _headline),
    "paired": ("Paired comparisons", _paired),
    "circle": ("Round the circle", _circle),
    "cost": ("What control costs", _pareto),
    "leakage": ("Leakage", _leakage),
    "dose": ("Dose and response", _dose),
    "negative": ("Negative prompts", _negative),
    "ablations": ("Ablations", _ablations),
    "samples": ("Samples", _samples),
    "provenance": ("Provenance", _provenance),
    "cautions": ("What may not be concluded", _cautions),
}
