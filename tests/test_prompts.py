"""Texts: every layout is read, and whatever is wrong in a file is told with its line."""

import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.labelled import load_labelled
from workbench.prompts import (
    data_hash,
    data_path,
    load_negative_prompts,
    load_pairs,
    load_questions,
    load_unrelated,
    published_instruction,
    that_fit,
)
from workbench.values import VALUES

PAIRS = "value,positive,negative,person\n"
QUESTIONS = "value,question,split\n"
UNRELATED = "prompt,kind,answer,related,split\n"


@pytest.fixture
def write(tmp_path):
    """Function: (text, file name) -> path of a file with that text."""

    def make(text, name="mine.csv", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name

    return make


# -- what is read --------------------------------------------------------------------------------------------


def test_pairs_from_a_csv_keep_their_other_columns(write):
    rows = 'Self_Direction,"I choose, always.", I follow. ,first\npower,I lead.,I obey.,third\n'
    path = write(PAIRS + rows)
    pairs = load_pairs(path)
    assert pairs.columns.tolist() == ["value", "positive", "negative", "person"]
    assert pairs.iloc[0].tolist() == ["self-direction", "I choose, always.", "I follow.", "first"]
    pd.testing.assert_frame_equal(load_pairs(str(path)), pairs)


def test_text_that_looks_like_a_missing_value_stays_text(write):
    pairs = load_pairs(write(PAIRS + "power,None,NA,null\n"))
    assert pairs.iloc[0].tolist() == ["power", "None", "NA", "null"]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(write):
    path = write(PAIRS + "\npower,I lead.,I obey.,first\n\n", encoding="utf-8-sig")
    assert load_pairs(path).value.tolist() == ["power"]


def test_pairs_from_convas_released_layout(write):
    for name in ("Self_Direction.csv", "POWER.csv"):
        write("question_1,question_2\nI choose.,I follow.\nI decide.,I ask.\n", name)
    folder = write("question_2,question_1\nI risk it.,I stay safe.\n", "Security.csv").parent
    pairs = load_pairs(folder)
    assert pairs.columns.tolist() == ["value", "positive", "negative"]
    assert pairs.value.value_counts().to_dict() == {"self-direction": 2, "power": 2, "security": 1}
    assert pairs[pairs.value == "security"].iloc[0].tolist() == ["security", "I stay safe.", "I risk it."]
    assert load_pairs(folder / "POWER.csv").value.unique().tolist() == ["power"]


def test_convas_released_names(write):
    """One folder with controlled and hard pairs and test questions: each loader takes its own files."""
    write("question_1,question_2\nI lock up.,I stay out.\n", "security_context_controlled.csv")
    write("question_1,question_2\nI guard it.,I paint it.\n", "Security_hard.csv")
    write("question_1,question_2\nI lead.,I follow.\n", "power_context_controlled.csv")
    folder = write("question\nShould I lock it?\nShould I move?\n", "test_security_new.csv").parent
    pairs = load_pairs(folder)
    assert (pairs.value + ": " + pairs.positive).tolist() == ["power: I lead.", "security: I lock up."]
    assert load_pairs(folder, pairs="hard").positive.tolist() == ["I guard it."]
    questions = load_questions(folder)
    assert questions.value.tolist() == ["security"] * 2 and set(questions.split) == {"test"}
    with pytest.raises(WorkbenchError, match="Hard pairs from 'natural' were asked for.\nAllowed: a folder with ConVA"):
        load_pairs("natural", pairs="hard")


def test_line_ends_of_other_systems_do_no_harm(tmp_path):
    (tmp_path / "mine.csv").write_bytes(b'value,positive,negative\r\npower,"I\r\nlead.",I obey.\r\n')
    assert load_pairs(tmp_path / "mine.csv").positive.tolist() == ["I\r\nlead."]


def test_pairs_from_a_data_frame_are_checked_alike():
    frame = pd.DataFrame({"value": ["Power", "security"], "positive": ["a", "b"], "negative": ["c", None]}, [4, 7])
    assert load_pairs(frame[:1]).value.tolist() == ["power"]
    with pytest.raises(WorkbenchError, match="data frame, row 7: nothing under negative"):
        load_pairs(frame)


def test_every_problem_is_told_at_once(write):
    for name in ("power.csv", "security.csv"):
        write("question_1,question_2\na,a\nb,c\nb,c\n,\nd\n", name)
    with pytest.raises(WorkbenchError) as caught:
        load_pairs(write("question_1\na\n", "hedonism.csv").parent)
    told = str(caught.value)
    assert "hedonism.csv and power.csv and security.csv were to be read.\nFound: 7 problems" in told
    for name in ("power", "security"):
        for line in ("2: both sides", f"4: the pair of {name}.csv, line 3 again", "6: 1 cells"):
            assert f"\n  {name}.csv, line {line}" in told
    assert "\n  hedonism.csv: no column negative" in told and "Put quotes round cells" in told
    many = PAIRS + "power,a,a,x\n" * 70
    with pytest.raises(WorkbenchError, match=r"Found: 70 problems(?s:.*)\.\.\. and 20 more\."):
        load_pairs(write(many))


def test_a_folder_holds_all_three(write):
    write(PAIRS + "power,I lead.,I obey.,first\n", "pairs.csv")
    write(QUESTIONS + "power,Should Mira lead?,test\n", "questions.csv")
    rows = "Two and two?,sum,4,no,test\nWhat is duty?,value,,True,test\n"
    folder = write(UNRELATED + rows, "unrelated.csv").parent
    assert (len(load_pairs(folder)), len(load_questions(folder))) == (1, 1)
    unrelated = load_unrelated(folder)
    assert unrelated.related.dtype == bool and unrelated.related.tolist() == [False, True]
    assert unrelated.answer.tolist() == ["4", ""]


def test_the_natural_data_is_whole():
    """As many rows of each value, block, split and kind as the card says."""
    pairs, questions, loose = load_pairs("natural"), load_questions("natural"), load_pairs("natural-uncontrolled")
    for table in (pairs, questions, loose):
        assert table.value.value_counts().to_dict() == dict.fromkeys(VALUES, 100)
    assert set(pairs.groupby(["value", "person", "form"]).size()) == {25}
    domains = pairs.groupby(["value", "domain"]).size()
    assert len(domains) == 120 and domains.min() >= 8 and domains.max() <= 9
    assert questions.groupby(["value", "split"]).size().unstack().drop_duplicates().values.tolist() == [[30, 70]]
    unrelated = load_unrelated("natural")
    kinds = unrelated[~unrelated.kind.isin(["hard", "value-laden"])].kind.value_counts()
    assert kinds.sum() == 400 and len(kinds) >= 15
    assert unrelated.kind.value_counts()[["hard", "value-laden"]].tolist() == [100, 100]
    assert unrelated.related.equals(unrelated.kind == "value-laden")
    assert set(unrelated.groupby(["kind", "split"]).size().unstack().eval("calibration - test")) == {0}


def test_negative_prompts_are_the_published_one_and_five_more(write):
    table = load_negative_prompts("natural")
    assert set(table.groupby("value").size()) == {6} and set(table.groupby("kind").size()) == {10}
    published = table[table.kind == "published"].set_index("value").prompt
    assert published.to_dict() == {value: published_instruction(value, "low") for value in VALUES}
    with pytest.raises(WorkbenchError, match="line 3: the prompt of mine.csv, line 2 again"):
        load_negative_prompts(write("value,kind,prompt\npower,role,Obey.\npower,ignore,Obey.\n"))


def test_no_question_shares_its_scene_with_a_pair_or_across_splits():
    """No two texts of the natural set are near-duplicates, of whatever file."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    pairs, questions = load_pairs("natural"), load_questions("natural")
    texts = [*questions.question, *pairs.positive]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, stop_words="english").fit_transform(texts)
    alike = (vectors @ vectors.T).toarray()
    n = len(questions)
    assert alike[:n, n:].max() < 0.5
    calibration = (questions.split == "calibration").to_numpy()
    assert alike[:n, :n][calibration][:, ~calibration].max() < 0.5


@pytest.mark.parametrize("kind", ["balanced", "polarity"])
def test_the_embedded_world_answers_for_its_own(kind):
    pairs = load_pairs("embedded", pairs=kind)
    assert {"value", "positive", "negative"} <= {*pairs} and set(pairs.value) == set(VALUES)
    assert {"value", "question", "split"} <= {*load_questions("embedded")}
    assert {"prompt", "kind", "related", "split"} <= {*load_unrelated("embedded")}


def test_the_hash_follows_cells_columns_and_order():
    table = pd.DataFrame({"value": ["power", "power"], "positive": ["a", "b"]})
    same = data_hash(table.copy())
    assert same == data_hash(table) and same.startswith("sha256:")
    others = [table[::-1], table.rename(columns={"value": "v"}), table.replace("b", "c"), table[:1]]
    assert len({same, *map(data_hash, others)}) == 5


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv was to be read.\nFound: mine.csv: no column value, positive, negative; it has none"),
        ("value,positive\npower,a\n", "no column negative; it has value, positive\nAllowed: columns value"),
        ("positive,negative\na,b\n", "no column value; it has positive, negative"),
        ("value,positive,question_1,negative\n", "a column that stands twice"),
        (PAIRS, "mine.csv was to be read.\nFound: mine.csv: no rows"),
        (PAIRS + "powr,a,b,first\n", "was to be read.\nFound: mine.csv, line 2: the value 'powr'\nAllowed: self-"),
        (PAIRS + ",a,b,first\n", "Found: mine.csv, line 2: the value ''"),
        (PAIRS + "power,a,b,\npower,, b,x\n", "line 3: nothing under positive"),
        (PAIRS + "power,a,a ,first\n", "line 2: both sides are 'a'"),
        (PAIRS + "power,a,b,x\npower,c,b,x\npower,a,b,y\n", "line 4: the pair of mine.csv, line 2 again"),
        (PAIRS + "power,a,b,x\npower,b,a,x\n", "the pair of mine.csv, line 2 again with its sides exchanged"),
        (PAIRS + 'power,"a\nb",c,x\npower,a,a,x\n', "line 4: both sides"),
        (PAIRS + "power,a,b, c,first\n", "line 2: 5 cells\nAllowed: 4"),
        (PAIRS + 'power,"a,b,first\n', "Allowed: a comma-separated file in UTF-8"),
    ],
)
def test_what_is_wrong_with_pairs_is_told_with_its_line(write, text, message):
    with pytest.raises(WorkbenchError) as caught:
        load_pairs(write(text))
    assert message in str(caught.value)


def test_one_pair_may_serve_two_values(write):
    assert len(load_pairs(write(PAIRS + "power,a,b,x\nachievement,a,b,x\n"))) == 2


@pytest.mark.parametrize(
    ("load", "text", "message"),
    [
        (load_questions, "value,question\npower,Go?\n", "no column split"),
        (load_questions, QUESTIONS + "power,Go?,train\n", "'train', neither 'calibration' nor 'test'"),
        (load_questions, QUESTIONS + "power,Go?,test\npower,Go?,test\n", "the question of mine.csv, line 2 again"),
        (load_unrelated, UNRELATED + "Two?,sum,4,maybe,test\n", "'maybe', neither 'true' nor 'false'"),
        (load_unrelated, UNRELATED + "A,sum,4,no,test\nA,sum,5,no,test\n", "the prompt of mine.csv, line 2 again"),
        (load_unrelated, UNRELATED + "Two?,,4,no,test\n", "nothing under kind"),
    ],
)
def test_what_is_wrong_with_questions_and_prompts_is_told(write, load, text, message):
    with pytest.raises(WorkbenchError) as caught:
        load(write(text))
    assert message in str(caught.value)


def test_files_in_another_encoding_are_refused(write):
    with pytest.raises(WorkbenchError, match=r"line 3: bytes that are not UTF-8 \(0xf1\)\nAllowed: UTF-8"):
        load_pairs(write(PAIRS + "power,a,b,x\npower,Señor,b,x\n", encoding="latin-1"))
    with pytest.raises(WorkbenchError, match="Found: mine.csv: UTF-16 text"):
        load_pairs(write(PAIRS + "power,a,b,x\n", encoding="utf-16"))


def test_folders_without_the_file(write, tmp_path):
    for load, file in ((load_questions, "questions.csv"), (load_unrelated, "unrelated.csv")):
        with pytest.raises(WorkbenchError, match=f"no {file} in it\nAllowed: 'embedded', 'natural', a CSV"):
            load(tmp_path)
    with pytest.raises(WorkbenchError, match="no CSV in it\nAllowed: pairs.csv"):
        load_pairs(tmp_path)
    write("question_1,question_2\na,b\n", "thrift.csv")
    with pytest.raises(WorkbenchError, match="thrift.csv, named after no value\nAllowed: self-direction, "):
        load_pairs(tmp_path)


def test_names_that_lead_nowhere():
    for load in (load_pairs, load_questions, load_unrelated):
        with pytest.raises(WorkbenchError, match="from 'nowhere' were.*\nFound: no such file or folder"):
            load("nowhere")


def test_kinds_of_pairs():
    with pytest.raises(WorkbenchError, match="'loose' were asked for.\nAllowed: 'balanced', 'polarity', 'hard'"):
        load_pairs("embedded", pairs="loose")
    with pytest.raises(WorkbenchError, match="Allowed: pairs='polarity' and split='held-out' with 'embedded'"):
        load_pairs("natural", pairs="polarity")


def test_data_that_is_not_there():
    assert data_path("natural", "pairs.csv").is_file()
    with pytest.raises(WorkbenchError, match=r"'natural/pears.csv' was.*\nFound: .*only: .*pairs\.csv"):
        data_path("natural", "pears.csv")
    with pytest.raises(WorkbenchError, match="nothing there"):
        data_path("unnatural", "pairs.csv")


def test_data_of_an_installed_package_lies_inside_it(tmp_path, monkeypatch):
    (tmp_path / "workbench" / "_data" / "natural").mkdir(parents=True)
    monkeypatch.setattr("workbench.prompts.__file__", str(tmp_path / "workbench" / "prompts.py"))
    assert data_path("natural") == tmp_path / "workbench" / "_data" / "natural"


def test_texts_that_do_not_fit_are_told_and_not_cut(tiny_model):
    """Rows are kept whole or left out whole, with the count that kept them out."""
    model = tiny_model("llama")
    words = " ".join(["house"] * (model.context + 5))
    table = pd.DataFrame({"positive": ["a house", words, "a"], "negative": ["b", "c", "d"]})
    kept, left_out = that_fit(model, table, ["positive", "negative"])
    assert kept["positive"].tolist() == ["a house", "a"] and kept.index.tolist() == [0, 1]
    assert left_out["positive"].tolist() == [words]
    assert left_out["tokens"].iloc[0].endswith(f" of {model.context} tokens")
    full = that_fit(model, table, ["negative"], room=model.context)
    assert full[0].empty and len(full[1]) == 3


def test_held_out_pairs_are_the_embedded_worlds_own():
    assert not set(load_pairs("embedded")["behaviour"]) & set(
        load_pairs("embedded", split="held-out")["behaviour"])
    with pytest.raises(WorkbenchError, match="split='held-out' with 'embedded' only"):
        load_pairs("natural", split="held-out")


# -- texts labelled by others --------------------------------------------------------------------------------


def test_touche_tables_as_labelled_texts(tmp_path):
    (tmp_path / "arguments-test.tsv").write_text(
        'Argument ID\tConclusion\tStance\tPremise\nA1\tBan it\tagainst\ta "free choice\nA2\tEnd it\tin favor of\tb\n'
    )
    head = "Argument ID\tSelf-direction: thought\tFace\tUniversalism: objectivity\tHumility\n"
    (tmp_path / "labels-test.tsv").write_text(head + "A1\t1\t1\t0\t0\nA2\t0\t0\t1\t1\n")
    table = load_labelled(tmp_path, "test")
    labels = sorted(table.text + ": " + table.value)
    assert labels == ['a "free choice: self-direction', "b: tradition", "b: universalism"]
    assert set(table.sign) == {1} and {"argument", "conclusion", "stance", "refined"} <= {*table}
    with pytest.raises(WorkbenchError, match="split 'training' was asked for.\nFound: test"):
        load_labelled(tmp_path, "training")
    (tmp_path / "labels-test.tsv").write_text(head + "A3\t1\t0\t0\t0\n")
    with pytest.raises(WorkbenchError, match="labels without an argument: A3"):
        load_labelled(tmp_path, "test")


def test_valuebench_items_as_labelled_texts(write):
    rows = "PVQ40,He obeys.,Conformity,1,Do I obey?\nX,I tidy up.,Order,1,Tidy?\nPVQ40,He defies.,Conformity,-1,Defy?\n"
    table = load_labelled(write("questionnaire,item,value,agreement,question\n" + rows))
    assert table.text.tolist() == ["He obeys.", "He defies."] and table.sign.tolist() == [1, -1]
    with pytest.raises(WorkbenchError, match="no column agreement\nAllowed: item, value, agreement"):
        load_labelled(write("item,value\na,Power\n"))
    with pytest.raises(WorkbenchError, match="row 0: the sign is '2'"):
        load_labelled(write("item,value,agreement\na,Power,2\n"))
    with pytest.raises(WorkbenchError, match="no such file or folder"):
        load_labelled("nowhere")


def test_the_published_tables_themselves(reference):
    """Real files: all labels of Touché23 but "face", the forty items of the PVQ."""
    for split, arguments in (("training", 5388), ("validation", 1896), ("test", 1576)):
        table = load_labelled(reference / "data" / "touche23", split)
        assert table["argument"].nunique() == arguments and set(table.value) == set(VALUES)
        assert not table.text.str.contains("\t").any() and table.text.str.len().min() > 5
    bench = load_labelled(reference / "data" / "valuebench" / "value_orientation.csv")
    pvq = bench[bench.questionnaire == "PVQ40"]
    assert len(pvq) == 40 and set(pvq.sign) == {1} and pvq.value.value_counts()["universalism"] == 6
