"""What an evaluation found: all answers with their judgements, and the tables that follow from them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import WorkbenchError
from ..probes.files import written_whole
from .capability import intact, unrelated_table
from .comparison import compare, rates
from .leakage import Leakage, leakage

FORMAT = "workbench evaluation 1"
SCORES = ["csr", "low", "high", "fr", "fr_low", "fr_high", "leakage", "n", "left_out"]
"""Columns of `Evaluation.table` that every caller may rely on, after method and value."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """answers: one row per answer: set, method, value (that is steered), prompt ("none" or "negative"), temperature,
    seed, about (whose question it is), question, answer, note (why there is none), open (whether the gate let the
    method act), share, tokens, fluent, and for each value what the judge said (1, .5, 0; NaN: not asked or undefined).
    provenance: model, judge, data, methods, libraries. tuning: method -> the curve that its strengths were chosen by.
    missing: what was not run and cannot be concluded.
    """

    answers: pd.DataFrame
    provenance: dict[str, Any]
    tuning: dict[str, pd.DataFrame] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    base: str = "Base"

    def __repr__(self) -> str:
        methods = ", ".join(dict.fromkeys(self.answers["method"]))
        model = self.provenance.get("model", {}).get("model", "unknown")
        return f"Evaluation({len(self.answers):,} answers of {model}: {methods})"

    # -- tables ----------------------------------------------------------------------------------------------

    def pick(self, set_: str = "own", prompt: str = "none", temperature: float | None = None) -> pd.DataFrame:
        """Answers of one set and prompt, at one temperature (None: the main one)."""
        main = self.provenance["temperatures"][0] if temperature is None else temperature
        a = self.answers
        return a[(a["set"] == set_) & (a["prompt"] == prompt) & (a["temperature"] == main)]

    def table(self) -> pd.DataFrame:
        """A row per method and value (and prompt and temperature, where there are several): method, value, csr with
        its Wilson interval low, high; fr with fr_low, fr_high; leakage, the mean over the other values of the rise of
        their CSR above Base on the same questions; n; left_out, answers whose prompts did not fit; then the other
        columns of `comparison.rates`.
        """
        own = self.answers[self.answers["set"] == "own"]
        table = rates(own, self.base)
        several = [name for name in ("prompt", "temperature") if table[name].nunique() > 1]
        rest = [name for name in table if name not in (
            "set", "prompt", "temperature", "method", "value", *SCORES)]  # fmt: skip
        return table[["method", "value", *several, *SCORES, *rest]]

    def compare(self, base: str | None = None, metric: str = "csr", **picked: Any) -> pd.DataFrame:
        """Paired differences of every method to one, value by value and over all; see `comparison.compare`."""
        return compare(self.pick(**picked), base=base or self.base, metric=metric)

    def leakage(self, method: str, pooled: bool = False, **options: Any) -> Leakage:
        """Which other values rise while one is steered; see `leakage.leakage`."""
        set_ = "pooled" if pooled else "own"
        return leakage(self.pick(set_), method, base=self.base, set=set_, **options)

    def unrelated(self) -> pd.DataFrame:
        """Share of unrelated questions answered rightly, per method and value; see `capability.unrelated_table`."""
        return unrelated_table(self.pick("unrelated"))

    def intact(self) -> pd.DataFrame:
        """Share of hard unrelated prompts answered as Base does; see `capability.intact`."""
        return intact(self.answers[self.answers["set"].isin(["unrelated", "hard"])])

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write answers.parquet, tuning/METHOD.parquet and, last, manifest.json, which says that the rest is whole."""
        folder = Path(folder)
        manifest = folder / "manifest.json"
        manifest.unlink(missing_ok=True)
        for name, table in [("answers", self.answers), *((f"tuning/{n}", t) for n, t in self._numbered())]:
            with written_whole(folder / f"{name}.parquet") as partial:
                table.to_parquet(partial, index=False)
        told = {"provenance": self.provenance, "missing": self.missing, "base": self.base, "tuning": [*self.tuning]}
        with written_whole(manifest) as partial:
            partial.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
        return folder

    def _numbered(self) -> list[tuple[str, pd.DataFrame]]:
        return [(str(n), table) for n, table in enumerate(self.tuning.values())]  # names of methods are free text

    def report(self, path: str | Path) -> Path:
        """A self-contained page with every figure and table, and the tables as CSV and LaTeX beside it."""
        from ..report import write_report

        return write_report(self, path)


def open_evaluation(folder: str | Path) -> Evaluation:
    """A study that was kept. WorkbenchError where it is not whole, or none."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if told["provenance"]["format"] != FORMAT:
            raise ValueError(told["provenance"]["format"])
        answers = pd.read_parquet(folder / "answers.parquet")
        curves = {name: pd.read_parquet(folder / f"tuning/{n}.parquet") for n, name in enumerate(told["tuning"])}
        return Evaluation(answers, told["provenance"], curves, told["missing"], told["base"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        parts = len(list((folder / "parts").glob("*.parquet")))
        raise WorkbenchError(
            f"The evaluation in {folder.name!r} was to be opened.",
            found=f"{parts} parts of one that was not ended" if parts else f"none ({type(problem).__name__})",
            allowed="a folder that `study(..., store=)` finished",
            do="Run the same study with the same store: it goes on where it was." if parts else None,
        ) from None
