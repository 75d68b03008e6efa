"""What the shipped models must show: the claims of README and tour, measured again on the models as they are.

Figures come from held-out behaviours and test questions only; ConVA's targets are chosen on calibration questions.
"""

import functools

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import workbench as wb
from workbench.embedded import data, judge
from workbench.embedded.grammar import SCRAMBLED_ORDER

TARGETS = (0.74, 0.78)  # two of those that the tour tries


@pytest.fixture(scope="module")
def pairs():
    return wb.load_pairs("embedded")


@pytest.fixture(scope="module")
def circle():
    return wb.load_model("embedded:circle")


@pytest.fixture(scope="module")
def probes(circle, pairs):
    return wb.fit_probes(circle, pairs)


@pytest.fixture(scope="module")
def gate(circle):
    questions, unrelated = wb.load_questions("embedded"), wb.load_unrelated("embedded")
    seen = unrelated[unrelated["split"] == "calibration"]
    dilemmas = questions.loc[questions["split"] == "calibration", "question"]
    return wb.ProbeGate.fit(
        circle, [*dilemmas, *seen.query("related")["prompt"]], seen.query("not related")["prompt"].tolist()
    )


@pytest.mark.parametrize("world", ["circle", "scrambled", "confirm"])
def test_the_models_speak_their_grammar_follow_instructions_and_know_answers(world):
    """Test questions at T = 1, 30 a value; each rate's 95 % upper bound reaches the bar that the card names."""
    model = wb.load_model(f"embedded:{world}")
    questions = wb.load_questions("embedded").query("split == 'test'").groupby("value").head(30)
    right = {"grammatical": [], "high": [], "low": []}
    for value, own in questions.groupby("value"):
        asked = own["question"].tolist()
        say = functools.partial(wb.generate, model, asked, temperature=1.0, max_new_tokens=64, seed=3)
        right["grammatical"] += [judge.read(answer).grammatical for answer in say()]
        for level in ("high", "low"):
            told = say(instruction=model.instruct(str(value), level))
            right[level] += [judge.control(answer, str(value)) for answer in told]
    unrelated = wb.load_unrelated("embedded").query("split == 'test' and not related")
    answers = wb.generate(model, unrelated["prompt"].tolist(), temperature=1.0, max_new_tokens=24, seed=3)
    known = np.array([judge.right(a, b) for a, b in zip(answers, unrelated["answer"], strict=True)])
    right |= {"unrelated": list(known), "choice": list(known[(unrelated["kind"] == "choice").to_numpy()])}
    low, high = ({kind: wb.evaluation.wilson(np.mean(hits), len(hits))[end] for kind, hits in right.items()}
                 for end in (0, 1))  # fmt: skip
    bars = {"grammatical": 0.98, "high": 0.70, "unrelated": 0.95, "choice": 0.90}
    assert {kind: high[kind] for kind, bar in bars.items() if high[kind] < bar} == {}
    assert low["low"] <= 0.05 and low["choice"] > 0.75


def test_probes_read_values_in_unseen_behaviours_and_words_do_not(circle, probes, pairs):
    held_out = data.pairs(split="held-out")
    accuracy = probes.accuracy_on(circle, held_out, probes.choose_layer())
    assert float(accuracy.mean()) >= 0.85 and float(accuracy.min()) >= 0.75
    lexical = []
    for value in wb.VALUES:
        words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
        sides = {name: table[table["value"] == value] for name, table in (("fit", pairs), ("test", held_out))}
        texts = {name: [*own["positive"], *own["negative"]] for name, own in sides.items()}
        label = {name: np.repeat([1, 0], len(own)) for name, own in sides.items()}
        lexical.append(words.fit(texts["fit"], label["fit"]).score(texts["test"], label["test"]))
    assert np.mean(lexical) <= 0.60


def test_transfer_falls_round_the_circle(probes):
    by_step = probes.transfer_by_step(probes.choose_layer()).groupby("step")["accuracy"].mean()
    assert by_step.is_monotonic_decreasing
    assert by_step[0] > 0.85 and by_step[5] < 0.15


@pytest.mark.parametrize("method", ["logistic", "mean_difference"])
def test_the_circle_is_found_and_the_scrambled_one_is_not_schwartzs(circle, probes, pairs, method):
    fitted = probes if method == "logistic" else wb.fit_probes(circle, pairs, method)
    control = wb.fit_probes(wb.load_model("embedded:scrambled"), pairs, method)
    for own in (wb.circumplex_fit(fitted), wb.circumplex_fit(control, order=SCRAMBLED_ORDER)):
        assert max(own.p, own.spearman_p, own.pearson_p, own.procrustes_p) <= 0.001
    schwartz = wb.circumplex_fit(control)
    assert min(schwartz.p, schwartz.spearman_p, schwartz.pearson_p, schwartz.procrustes_p) > 0.05
    assert abs(schwartz.ci) < 0.30


def test_gated_conva_controls_and_leaves_the_rest_alone(circle, pairs, gate):
    questions = wb.load_questions("embedded")
    probes = wb.fit_probes(circle, pairs, C=1e-5)

    def conva(value, target):
        return wb.ConVA(probes, value, target=target, layers=[3], gate=gate)

    chosen, _ = wb.evaluation.tune(circle, conva, TARGETS, questions)
    methods = {"Base": lambda value: wb.Base(), "ConVA": lambda value: conva(value, chosen[value])}
    result = wb.study(circle, methods, questions, limit=60)
    csr, fr = (result.compare(metric=metric).query("value == 'all'").iloc[0] for metric in ("csr", "fr"))
    assert csr["low"] > 0.4 and csr["high"] > 0.5 and csr["p"] < 1e-6
    assert fr["difference"] >= -0.02

    unrelated = wb.load_unrelated("embedded")
    asked = unrelated[(unrelated["split"] == "test") & ~unrelated["related"]].reset_index(drop=True)
    opened = gate.opens(asked["prompt"])

    def right(prompts, **steer):
        answers = wb.generate(circle, prompts["prompt"].tolist(), temperature=1.0, max_new_tokens=24, **steer)
        return answers, np.array([judge.right(a, b) for a, b in zip(answers, prompts["answer"], strict=True)])

    closed = asked[~opened].head(20)
    assert right(closed, steer=methods["ConVA"]("security"))[0] == right(closed)[0], "a closed gate changes no bit"
    # So only prompts that open the gate can be answered worse: the upper 95 % bound on their share.
    before = right(asked[opened])[1]
    worse = [(before & ~right(asked[opened], steer=methods["ConVA"](v))[1]).sum() for v in wb.VALUES]
    assert wb.evaluation.wilson(np.mean(worse) / len(asked), len(asked), confidence=0.90)[1] <= 0.02
