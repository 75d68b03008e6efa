"""The audit: each planted fault is found by its own criterion, and a clean set passes that criterion."""

import numpy as np
import pandas as pd
import pytest

from workbench.audit import BARS, audit_pairs, compare_audits
from workbench.errors import WorkbenchError
from workbench.figures import audit_figure
from workbench.values import VALUES

NOUNS = "kettle lamp river ferry orchard violin ledger bakery harbour tunnel".split()
PLACES = "porch attic cellar market depot chapel".split()
PEOPLE = "Mira Chen Amina Diego Tala Jonas Ravi Hana".split()


@pytest.fixture(scope="module")
def clean():
    """24 pairs a value of which words tell nothing: who does it to whom is all that differs."""
    rng, rows = np.random.default_rng(0), []
    for value in VALUES[::2]:
        for i in range(24):
            a, b = rng.choice(PEOPLE, 2, replace=False)
            thing, place = rng.choice(NOUNS), rng.choice(PLACES)
            number = rng.integers(1000, 9999)
            positive = f"Today {a} led {b} to the {thing} by the {place} at {number} again."
            negative = f"Today {b} led {a} to the {thing} by the {place} at {number} again."
            person, form = ["first", "third"][i % 2], ["statement", "question"][i // 2 % 2]
            rows.append(dict(value=value, pair=i, person=person, form=form, domain=["work", "family"][i // 4 % 2],
                             positive=positive, negative=negative))  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def found(clean):
    return audit_pairs(clean, "clean")


def figure(audit, criterion):
    return audit.criteria.set_index("criterion").loc[criterion]


def test_a_clean_set_holds_where_it_is_clean(found):
    table = found.criteria.set_index("criterion")
    assert list(table.index) == list(BARS)
    for criterion in (
        "words alone tell the sides: mean over values", "words of a value tell other values' sides",
        "mood alone tells the sides", "length alone tells the sides", "longer side / shorter side, highest",
        "words shared within a pair: mean", "texts that name a value", "blocks: smallest / largest",
    ):  # fmt: skip
        assert table.loc[criterion, "verdict"] == "holds", criterion
    assert table.loc["words shared within a pair: mean", "figure"] == 1
    assert table.loc["mood alone tells the sides", "figure"] == 0.5
    assert table.loc["words alone tell the value, from negatives", "figure"] < 0.4
    assert len(found.by_value) == 5 and len(found.by_block) == 20 and set(found.by_step.step) == {0, 2, 4}


def one(row, text):
    """Function that puts `text` in place of one positive; {other} in it is the positive of row 5."""
    return lambda t: t.assign(positive=t.positive.where(t.index != row, text.replace("{other}", t.positive[5])))


FAULTS = {
    "words alone tell the sides: mean over values": lambda t: t.assign(negative=t.negative.str.replace("led", "drove")),
    "words of a value tell other values' sides": lambda t: t.assign(negative=t.negative.str.replace("led", "drove")),
    "mood alone tells the sides": lambda t: t.assign(negative=t.negative.str.replace("again", "with horrible cruelty")),
    "length alone tells the sides": lambda t: t.assign(positive=t.positive + " It was so."),
    "longer side / shorter side, highest": one(7, "Mira led."),
    "words shared within a pair: mean": lambda t: t.assign(negative="Grey clouds, number " + t.index.astype(str)),
    "texts that name a value": one(3, "Mira is a powerful kettle by the depot."),
    "blocks: smallest / largest": lambda t: t[1:],
    "domains: smallest / largest": lambda t: t.assign(domain=t.domain.where(t.index > 30, "money")),
    "likeness of two rows, highest": one(9, "{other} Yes."),
    "names: share of the commonest": lambda t: t.assign(positive=t.positive.str.replace("Today", "Today Priya,")),
}
CROWDED = ("likeness of two rows, highest", "names: share of the commonest", "domains: smallest / largest")
"""What so small a vocabulary fails anyway."""


@pytest.mark.parametrize("criterion", FAULTS)
def test_a_planted_fault_is_found(clean, found, criterion):
    spoilt = audit_pairs(FAULTS[criterion](clean.copy()).reset_index(drop=True), "spoilt")
    assert criterion in spoilt.failed
    if criterion not in CROWDED:
        assert criterion not in found.failed


def test_topic_alone_is_told(clean):
    """Negatives that speak of their value's topic give the value away, and it is reported."""
    topic = clean.value.map(dict(zip(VALUES, NOUNS, strict=True)))
    leak = audit_pairs(clean.assign(negative=clean.negative + " The " + topic + " stood there."))
    assert figure(leak, "words alone tell the value, from negatives").figure > 0.9
    assert figure(leak, "words alone tell the value, from negatives").verdict == "reported"


def test_alike_rows_are_listed_with_their_texts(clean):
    table = clean.assign(positive=clean.positive.where(clean.index != 9, clean.positive[5] + " Yes."))
    first = audit_pairs(table).near.iloc[0]
    assert {first["row"], first["other_row"]} == {5, 9} and first["likeness"] > 0.8
    assert {first["text"], first["other_text"]} == {table.positive[5], table.positive[9]}


def test_names_of_values_are_listed(clean):
    table = clean.copy()
    table.loc[4, "negative"] = "The Hedonistic kettle again."
    table.loc[5, "positive"] = "Our self-directed insecure ferry."
    leaks = audit_pairs(table).leaks
    assert leaks["word"].tolist() == ["self-directed", "Hedonistic"] and leaks["row"].tolist() == [5, 4]


def test_the_figure_shows_what_the_audit_found(clean, found):
    """A dot per value, a line per set by circular step, hostile names as text."""
    fig = audit_figure([found, audit_pairs(clean.assign(positive=clean.positive + " It was so."), "<b>$x$")])
    dots = [t for t in fig.data if t.type == "scatter" and t.mode == "markers" and t.yaxis == "y"]
    assert [list(t.y) for t in dots][0] == found.by_value["accuracy"].tolist() and len(dots) == 2
    lines = [t for t in fig.data if t.type == "scatter" and t.mode == "lines+markers"]
    assert [t.name for t in lines] == ["clean", "&lt;b&gt;&#36;x&#36;"]
    assert list(lines[0].y) == found.by_step.groupby("step").accuracy.mean().tolist()
    with pytest.raises(WorkbenchError, match="one or more"):
        audit_figure([])


def test_what_a_set_lacks_is_unknown(clean):
    bare = audit_pairs(clean[["value", "positive", "negative"]])
    for criterion in ("blocks: smallest / largest", "domains: smallest / largest"):
        row = figure(bare, criterion)
        assert row.verdict == "unknown" and row.note.startswith("no column")
    assert bare.by_block.empty


def test_sets_are_compared_in_one_table(clean, found):
    other = audit_pairs(clean.assign(positive=clean.positive + " It was so."), "long")
    table = compare_audits([found, other]).set_index("criterion")
    assert table.loc["length alone tells the sides", ["clean: verdict", "long: verdict"]].tolist() == ["holds", "fails"]
    assert table.loc["length alone tells the sides", "long"] == 1
    with pytest.raises(WorkbenchError, match="one or more audits of different names"):
        compare_audits([found, found])
    with pytest.raises(WorkbenchError, match="a table with value, positive, negative"):
        audit_pairs(pd.DataFrame({"value": ["power"]}))
