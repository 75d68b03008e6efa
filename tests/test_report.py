"""The report: nothing runs or is fetched that is not its own, its numbers are the tables', gaps are said."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn import EVIL
from evaluated import HOSTILE, METHODS, answers, evaluation, provenance

from workbench import figures
from workbench.errors import WorkbenchError
from workbench.evaluation.comparison import compare, rates, scores
from workbench.rates import wilson
from workbench.report import headline, write_report
from workbench.report.blocks import figure as figure_block
from workbench.report.blocks import number
from workbench.report.samples import samples
from workbench.report.tables import latex, tex, winners
from workbench.values import VALUES

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """A page as a browser reads it: elements with attributes and text; scripts; tables cell by cell."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said, self.scripts, self.tables = "", [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr" and self.tables:
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append([dict(attrs).get("class") or "", ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.said += data
            if "small" not in self.open and {"td", "th"} & {*self.open}:
                self.tables[-1][-1][-1][1] += data

    def table(self, *head: str) -> list[list[Any]]:
        """Rows of the first table whose head begins so."""
        return next(t[1:] for t in self.tables if t and [c[1] for c in t[0][: len(head)]] == list(head))


@pytest.fixture(scope="module")
def ev():
    return evaluation()


@pytest.fixture(scope="module")
def folder(ev, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(ev, path) == path
    return path.parent


@pytest.fixture(scope="module")
def source(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


# --- safe and self-contained ---


def test_only_its_own_scripts_stand_in_it_and_the_policy_names_them(page):
    kinds = [attrs.get("type") for tag, attrs in page.elements if tag == "script"]
    assert kinds == ["application/json", None, None]
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts[1:]}
    assert set(rules["script-src"].split()) == hashes
    assert rules["default-src"] == "'none'" and rules["base-uri"] == "'none'" and rules["form-action"] == "'none'"
    assert page.open == []


def test_nothing_is_fetched(page, source):
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href", "action", "srcset", "data"):
            assert re.fullmatch(r"#[a-z]+", attrs.get(name) or "#a"), (tag, attrs)
    ours = source.replace(page.scripts[1], "")
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//|url\(|@import", ours)


def test_hostile_text_is_shown_as_text(page, source):
    assert page.said.count(HOSTILE) >= 3, "the fingerprint, a negative prompt, what is missing"
    assert EVIL in page.said and "{{7*7}}" in page.said and "\n49" not in page.said
    data = json.loads(page.scripts[0])
    told = json.dumps(data["samples"], ensure_ascii=False)
    assert json.dumps(HOSTILE, ensure_ascii=False)[1:-1] in told, "no hostile answer among the samples"
    assert not re.search("[<>&\u2028]", page.scripts[0]), "characters that could end or change a script"


def test_the_page_writes_samples_as_text_only(page):
    script = page.scripts[2]
    assert "textContent" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)


def test_figures_go_with_the_readers_scheme(page, source):
    assert "prefers-color-scheme: dark" in source and "@media print" in source
    data = json.loads(page.scripts[0])["figures"]
    shown = [attrs for tag, attrs in page.elements if attrs.get("class") == "plot"]
    assert len(shown) == len(data) > 20 and {attrs["id"] for attrs in shown} == {*data}
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in shown)
    assert not any("<b>" in attrs["aria-label"] for attrs in shown)


def test_what_differs_on_dark_pages_makes_the_dark_figure():
    fig = figures.pareto(pd.DataFrame({"method": ["Base", "A"], "csr": [0.1, 0.5], "low": 0.0, "high": 0.6,
                                       "fr": [1.0, 0.9], "fr_low": 0.8, "fr_high": 1.0}))  # fmt: skip
    block = figure_block(fig)
    copy = json.loads(json.dumps(block["light"]))
    for path, colour in block["dark"]:
        node = copy
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = colour
    assert copy == json.loads(figures.dark(fig).to_json()) != block["light"] == json.loads(fig.to_json())


# --- numbers ---


def test_the_csv_holds_the_tables(ev, folder):
    table = pd.read_csv(folder / "table.csv")
    assert table.columns[:4].tolist() == ["method", "value", "prompt", "temperature"]
    assert not table.duplicated(["method", "value", "prompt", "temperature"]).any()
    own = rates(ev.answers[ev.answers["set"] == "own"]).drop(columns="set")
    keys = ["method", "value", "prompt", "temperature"]
    told = own[keys].merge(table, on=keys, how="left")
    for column in own.columns.difference(keys):
        np.testing.assert_allclose(told[column].to_numpy(float), own[column].to_numpy(float), 1e-12, err_msg=column)
    unrelated = ev.unrelated().set_index(["method", "value"])
    plain = table[(table["prompt"] == "none") & (table["temperature"] == 1)].set_index(["method", "value"])
    np.testing.assert_allclose(plain["unrelated"].drop("all", level="value"),
                               unrelated["accuracy"].loc[plain.drop("all", level="value").index])  # fmt: skip
    nlr = ev.leakage("CAA").nlr
    np.testing.assert_allclose(plain.loc["CAA", "nlr"].loc[list(VALUES)], nlr.loc[list(VALUES), "estimate"])
    assert plain.loc["CAA", "nlr"]["all"] == pytest.approx(nlr.loc["mean", "estimate"])


def test_the_headline_is_the_mean_over_questions_with_wilsons_interval(ev):
    table = headline(ev).set_index(["method", "prompt", "temperature"])
    assert len(table) == 3 * len(METHODS) and table["unrelated"].notna().sum() == len(METHODS)
    part = ev.pick()
    part = part[(part["method"] == "CAA") & (part["note"] == "")]
    each = pd.Series(scores(part, "csr"), index=part.index).groupby([part["value"], part["question"]]).mean()
    row = table.loc["CAA", "none", 1.0]
    assert row["csr"] == pytest.approx(each.mean()) and row["n"] == len(each) == 120
    assert (row["low"], row["high"]) == pytest.approx(wilson(each.mean(), 120))
    assert table.loc["Base", "none", 1.0]["left_out"] == 1 and table["left_out"].sum() == 1
    hard = ev.intact().set_index(["set", "method"])["intact"]
    assert row["intact"] == pytest.approx(hard["hard", "CAA"]) and row["intact"] != hard["unrelated", "CAA"]


def test_the_page_shows_the_numbers_of_the_csv(page, folder):
    table = pd.read_csv(folder / "table.csv").query("value == 'all' and prompt == 'none' and temperature == 1")
    shown = {row[0][1]: row for row in page.table("method", "CSR", "FR")}
    assert list(shown) == list(table["method"])
    for row in table.to_dict("records"):
        for at, column in enumerate(("csr", "fr", "unrelated"), 1):
            assert shown[row["method"]][at][1] == f"{row[column]:.3f}"
        assert shown[row["method"]][7][1] == str(row["n"])


def test_nan_is_shown_as_undefined(page, folder, source):
    random = next(row for row in page.table("method", "CSR") if row[0][1] == "random direction")
    assert random[5] == ["undefined", "undefined"], "NLR of a method without any gain"
    reasons = [row[-1][1] for t in page.tables for row in t if t[0][0][1] == "value steered"]
    assert any("not above its noise" in why for why in reasons)
    for text in (page.said, (folder / "table.tex").read_text(encoding="utf-8")):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert number(np.nan)["text"] == "undefined" and number(-0.0001, -0.5, 0.2)["text"] == "0.000"
    assert number(-0.25, -0.5, 0.2)["more"] == "−0.500 to 0.200"


# --- bold ---


def decided(gains: dict[str, float], n: int = 60) -> pd.DataFrame:
    """Methods whose CSR for power differs as told; the other value is alike for all."""
    methods = {name: (gain, 0.0, 0.0, 1.0) for name, gain in gains.items()}
    table = answers(n, methods, seed=3)
    table = table[(table["set"] == "own") & (table["prompt"] == "none") & (table["temperature"] == 1)]
    table = table[table["value"].isin(["power", "security"])]
    alike = table["value"] == "security"
    table.loc[alike, "security"] = [float(len(q) % 2) for q in table.loc[alike, "question"]]
    return table


def test_only_a_method_that_beats_every_other_one_wins():
    clear = decided({"Base": 0.0, "A": 0.2, "B": 0.75})
    assert winners(clear, "csr")["power"] == "B"
    close = decided({"Base": 0.0, "A": 0.7, "B": 0.72})
    assert "power" not in winners(close, "csr") and "all" not in winners(close, "csr")
    for table in (clear, close):
        told = winners(table, "csr")
        assert "security" not in told, "a tie has no winner"
        for value in ("power", "security", "all"):
            best = [m for m in ("Base", "A", "B") if (lambda t: ((t["difference"] < 0) & (t["p_holm"] < 0.05)).all())(
                (c := compare(table, m))[c["value"] == value])]  # fmt: skip
            assert ([told[value]] if value in told else []) == best
    assert winners(clear[clear["method"] == "A"], "csr") == {} == winners(clear[:0], "csr")


def test_bold_in_page_and_latex_is_a_winner(ev, page, folder):
    best = {metric: winners(ev.pick(), metric) for metric in ("csr", "fr")}
    bold = [(row[0][1], at) for row in page.table("method", "CSR") for at, c in enumerate(row) if c[0] == "best"]
    assert {m for m, at in bold if at == 1} == {best["csr"].get("all")} - {None}
    lines = (folder / "table.tex").read_text(encoding="utf-8").split(r"\label{tab:values}")[1].splitlines()
    cells = [line.removesuffix(r" \\").split(" & ") for line in lines if line.count(" & ") == 10][1:]
    found = {VALUES[at - 1]: row[0] for row in cells for at, c in enumerate(row) if r"\textbf" in c}
    assert found == {value: tex(method) for value, method in best["csr"].items() if value != "all"}
    told = {"csr": {"all": "CAA", "power": "ICA"}}
    values, head = (pd.read_csv(folder / "table.csv").query(q) for q in ("value != 'all'", "value == 'all'"))
    forced = latex(ev, head, values, told)
    assert forced.count(r"\textbf") == 2 and re.search(r"\nCAA & \\textbf", forced)


# --- LaTeX ---


def test_the_latex_is_well_formed(folder):
    source = (folder / "table.tex").read_text(encoding="utf-8")
    body = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", body):
        assert what == "begin" or opened.pop() == name
        opened += [name] if what == "begin" else []
    assert not opened
    bare = re.sub(r"\\[\\{}&%$#_ ]", "", body)
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    assert not re.search(r"[%#_~^]", bare.replace("^", "^")), "unescaped"
    for table in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", body, re.DOTALL):
        rows = [re.sub(r"\\&", "", line) for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {row.count("&") for row in rows} == {len(table[0]) - 1} and len(rows) == len(METHODS) + 1
    assert r"\toprule" in body and r"\bottomrule" in body


def test_tex_escapes_everything_that_latex_acts_on():
    assert tex("50 % of a_b & c\n# {x} $y$ ~ ^ \\z") == (
        r"50 \% of a\_b \& c \# \{x\} \$y\$ \textasciitilde{} \textasciicircum{} \textbackslash{}z")  # fmt: skip
    assert len(tex("x" * 500)) == 60 and tex("a\u2028\x00b") == "a b"


# --- what is missing, what may not be concluded ---


def test_what_is_missing_is_said_where_it_would_stand(tmp_path):
    table = answers(4, {"Base": METHODS["Base"], "CAA": METHODS["CAA"]})
    own = table[(table["set"] == "own") & (table["prompt"] == "none") & (table["temperature"] == 1)]
    bare = own.drop(columns=["fluent", "right", *VALUES])
    told = provenance(["Base", "CAA"]) | {"judge": None, "temperatures": [1.0], "seeds": [0]}
    path = write_report(evaluation(answers=bare, provenance=told, tuning={}, missing=["no judge"]), tmp_path / "r.html")
    page = Page(path.read_text(encoding="utf-8"))
    said = " ".join(page.said.split())
    for what in ("CSR round the circle: not shown", "Control against fluency: not shown", "Leakage of CAA: not shown",
                 "Dose and response: not shown", "Negative prompts: not shown", "Ablations: not shown",
                 "CSR against Base: not shown", "Unrelated accuracy against Base: not shown", "no other was run",
                 "no judge read the answers", "Not run: no judge"):  # fmt: skip
        assert what in said, what
    assert [c[1] for c in page.table("method", "CSR", "FR")[0]][1:7] == ["undefined", "undefined", *["–"] * 4]


def caution(**changed) -> str:
    from workbench.report.cautions import cautions

    ev = evaluation(**changed)
    head = headline(ev)
    plain = head[(head["prompt"] == "none") & (head["temperature"] == ev.provenance["temperatures"][0])]
    return "\n".join(cautions(ev, plain, {}))


def test_cautions_follow_from_the_facts():
    said = caution()
    for fact in ("phantom", "exact judge", "T = 1; beside it T = 0", "12 questions per value", "all 120 together",
                 "2 seeds", "6 methods", "answers left out, 1", "Tuned, on calibration questions: ConVA", HOSTILE):
        assert fact in said, fact
    real = provenance() | {"model": {"model": "org/llama"}, "judge": "llm gpt", "temperatures": [0.0]}
    said = caution(provenance=real, tuning={}, missing=[])
    for fact in ("one was measured, org/llama", "'llm gpt'", "decoding was greedy, and no other", "One seed",
                 "no curve of strengths"):  # fmt: skip
        assert fact in said, fact
    assert "phantom" not in said and "exact judge" not in said and "Not run" not in said


# --- samples, size, refusals ---


def test_samples_hold_the_same_question_for_all_methods(ev):
    groups = {group["title"]: group["questions"] for group in samples(ev)}
    assert {*VALUES, "power behind a negative prompt", "unrelated prompts", "hard unrelated prompts"} <= {*groups}
    main = ev.pick()
    for shown in groups["power"]:
        assert [row[0] for row in shown["answers"]] == list(METHODS)
        for method, said, judged in shown["answers"]:
            row = main[(main["method"] == method) & (main["value"] == "power") & (main["seed"] == 0)
                       & (main["question"] == shown["question"])].iloc[0]  # fmt: skip
            assert said == row["answer"]
            label = {1.0: "power: acts on it", 0.5: "power: in between", 0.0: "power: does not act on it"}[row["power"]]
            assert judged.startswith(label) and ("not fluent" in judged) == (row["fluent"] == 0)
    assert "gate shut" in json.dumps(groups["unrelated prompts"])
    assert samples(ev) == samples(ev) != samples(ev, seed=1)


def test_samples_are_bounded_however_many_answers_there_are(ev):
    table = ev.pick()
    many = pd.concat([table.assign(question=table["question"] + f" {k}", answer="long " * 400) for k in range(30)])
    assert len(many) > 50_000
    text = json.dumps(samples(evaluation(answers=many)))
    assert len(text) < 1_000_000 and "[cut: 2000 characters]" in text


def test_the_page_stays_small(source):
    assert len(source.encode()) < 10_000_000


def test_refusals(ev, tmp_path):
    with pytest.raises(WorkbenchError, match=r"ends in \.html"):
        write_report(ev, tmp_path / "report.pdf")
    with pytest.raises(WorkbenchError, match="no answers to own questions"):
        write_report(evaluation(answers=ev.answers[ev.answers["set"] == "hard"]), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
