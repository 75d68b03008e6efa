"""Texts that others have labelled with values: material for probes and judges to be held against.

Two public layouts are read: Touché23-ValueEval (arguments with twenty refined values, tab-separated, one table of
arguments and one of labels) and ValueBench (questionnaire items with the sign of their agreement). The
data is not part of the workbench: give the path of your copy.
"""

import csv
from pathlib import Path

import pandas as pd

from .errors import WorkbenchError
from .reading import Layout, read
from .values import REFINED, VALUES

_BASIC = {part: value for value, parts in REFINED.items() for part in parts}
_BASIC["universalism-objectivity"] = "universalism"


def load_labelled(path: str | Path, split: str = "validation") -> pd.DataFrame:
    """Labelled texts, one row per text and label: columns text, value, sign, then what the source adds.

    path: a folder with Touché23's tables, or ValueBench's CSV (columns item, value, agreement). split: of Touché23,
        "training", "validation" or "test". sign: +1 where the text speaks for the value, -1 against it.

    Touché23: text is the premise; columns argument, conclusion, stance, refined. Its twenty values are joined to ten
    by the PVQ-RR key (`values.REFINED`; objectivity counts as universalism); rows of "face", which no basic value
    holds, are left out. ValueBench: rows of other constructs than the ten values are left out; of what is left, only
    the questionnaire PVQ40 was made for Schwartz's values, others merely share a name. Raises WorkbenchError.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _touche(path, split)
    if not path.exists():
        raise WorkbenchError(f"Labelled texts from {path.name!r} were asked for.", "no such file or folder",
                             "a folder with Touché23's tables, or ValueBench's CSV")  # fmt: skip
    return _valuebench(path)


def _touche(folder: Path, split: str) -> pd.DataFrame:
    splits = sorted(file.stem.removeprefix("arguments-") for file in folder.glob("arguments-*.tsv"))
    if split not in splits:
        raise WorkbenchError(f"Touché23's split {split!r} was asked for.",
                             found=", ".join(splits) or "none in that folder",
                             allowed="a folder with arguments-<split>.tsv and labels-<split>.tsv")  # fmt: skip
    arguments, labels = (_table(folder / f"{kind}-{split}.tsv") for kind in ("arguments", "labels"))
    both = labels.merge(arguments, on="Argument ID", how="left", validate="one_to_one", indicator=True)
    if lost := both.loc[both["_merge"] != "both", "Argument ID"].tolist():
        raise WorkbenchError(f"Touché23's split {split!r} was asked for.",
                             f"labels without an argument: {', '.join(lost[:5])}")  # fmt: skip
    names = [column for column in labels.columns if column != "Argument ID"]
    rows = both.melt(["Argument ID", "Conclusion", "Stance", "Premise"], names, "refined", "given")
    rows = rows[rows["given"] == "1"].assign(refined=lambda t: t["refined"].str.lower().str.replace(": ", "-"))
    rows = rows.assign(value=rows["refined"].map(_BASIC), sign="1").dropna(subset=["value"])
    rows = rows.rename(columns={"Argument ID": "argument", "Conclusion": "conclusion", "Stance": "stance",
                                "Premise": "text"}).drop(columns="given")  # fmt: skip
    return _checked(f"Touché23 {split}", rows)


def _table(file: Path) -> pd.DataFrame:
    if not file.exists():
        raise WorkbenchError(f"Touché23's table {file.name} was asked for.", "no such file")
    return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8-sig")


def _valuebench(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if missing := [c for c in ("item", "value", "agreement") if c not in table]:
        raise WorkbenchError(f"{file.name} was to be read as ValueBench's.", f"no column {', '.join(missing)}",
                             "item, value, agreement")  # fmt: skip
    known = table["value"].str.lower().isin(VALUES)
    return _checked(file.name, table[known].rename(columns={"item": "text", "agreement": "sign"}))


def _checked(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    def check(row, seen, where):
        return None if row["sign"] in ("1", "-1") else f"the sign is {row['sign']!r}, neither '1' nor '-1'"

    checked = read({name: frame}, Layout(("text", "value", "sign"), check))
    return checked.assign(sign=checked["sign"].astype(int))
