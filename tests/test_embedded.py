"""The embedded world: its words, its law, its masks, its judge against an oracle that runs the grammar forwards."""

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2 as chi2_law

from workbench.embedded import WORLDS, data, judge, language
from workbench.embedded.batches import COPY_WEIGHT, encode, gist_masks, make_batches
from workbench.embedded.card import surprisals
from workbench.embedded.grammar import SCRAMBLED_ORDER, UNRELATED_KINDS, World, every_text
from workbench.embedded.targets import Targets
from workbench.errors import WorkbenchError
from workbench.values import VALUES


@pytest.fixture(scope="module", params=["circle", "scrambled", "confirm"])
def world(request):
    return World(request.param)


# -- words ---------------------------------------------------------------------------------------------


def test_language_is_as_rich_as_the_card_says():
    per_value = Counter(b.value for b in language.behaviours())
    assert set(per_value) == set(VALUES) and min(per_value.values()) >= 40
    assert len({b.text for b in language.behaviours()}) == len(language.behaviours())
    held_out = Counter(b.value for b in language.behaviours() if b.split == "held-out")
    assert all(held_out[v] == 0.2 * per_value[v] for v in VALUES)
    assert len(language.options()) >= 150 and len(UNRELATED_KINDS) >= 6
    for family in "ab":
        answers = [f for f in language.frames() if f.family == family and f.use == "reason"]
        assert len({f.text for f in answers}) >= 30


def test_no_behaviour_names_a_value():
    names = {part for v in VALUES for part in v.split("-")} - {"self"}
    words = {w for b in language.behaviours() for w in b.text.split()}
    assert not names & words


@pytest.mark.parametrize(
    "base, gerund",
    [
        ("choose a path", "choosing a path"),
        ("be feared", "being feared"),
        ("lie down", "lying down"),
        ("put up", "putting up"),
        ("study", "studying"),
        ("agree", "agreeing"),
        ("knit", "knitting"),
    ],
)
def test_gerund(base, gerund):
    assert language.gerund(base) == gerund


def test_tens_of_thousands_of_distinct_sentences(world):
    rng = random.Random(0)
    said = {p.text for _ in range(12_000) for p in world.document(rng).pieces if p.tag in ("answer", "context")}
    assert len(said) > 20_000


# -- the law of a speaker ------------------------------------------------------------------------------


def test_speakers_follow_their_position(world):
    """A speaker at V's angle affirms V most, its circular neighbours alike, its opposite practically never."""
    at = world.value_probabilities(world.angle["power"])
    position = {VALUES[v]: p for p, v in enumerate(world.order)}
    here = position["power"]
    step = lambda k: at[world.order[(here + k) % 10]]  # noqa: E731
    assert at[VALUES.index("power")] == max(at) > 0.6
    assert math.isclose(step(1), step(-1)) and step(1) > step(2) > step(5) and step(5) < 1e-6


def test_scrambled_order_knows_nothing_of_schwartz():
    """Cosine correlation and correspondence index with Schwartz's order, counted directly."""
    place = np.argsort(SCRAMBLED_ORDER)
    pairs = list(combinations(range(10), 2))
    closeness = lambda i, j: math.cos(2 * math.pi * (i - j) / 10)  # noqa: E731
    theirs = [round(closeness(place[i], place[j]), 9) for i, j in pairs]
    step = [min(abs(i - j), 10 - abs(i - j)) for i, j in pairs]
    assert abs(np.corrcoef(theirs, [closeness(i, j) for i, j in pairs])[0, 1]) < 0.02
    signs = [np.sign(theirs[a] - theirs[b]) for a in range(45) for b in range(45) if step[a] < step[b]]
    assert len(signs) == 800 and abs(np.mean(signs)) < 0.02


def test_surprisal_integrates_theta_out():
    """Two statements of one speaker: the marginal is larger than the product of the marginals."""
    scored = surprisals("circle", 300, seed=1)
    assert all(math.isfinite(s) and s > 0 for _, s in scored)
    assert {d.kind for d, _ in scored} == {"monologue", "dilemma", "instructed", "described", "unrelated"}


# -- the judge -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle():
    """Every sentence an answer can hold -> (polarity, value, subject), made by running the grammar forwards."""
    made: dict[str, tuple[str, str, str | None]] = {}
    fill = World("circle").fill
    for frame in language.frames():
        if frame.use == "reason":
            subjects = ("she", "he", "you") if frame.owner == "s" or "{s}" in frame.text else ("she",)
            for behaviour in language.behaviours():
                for subject in subjects:
                    spoken_of = subject if "{s}" in frame.text or "{S}" in frame.text else None
                    made[fill(frame, behaviour, None, subject)] = (frame.polarity, behaviour.value, spoken_of)
        elif frame.use == "comment":
            made[frame.text] = ("", "", None)
        elif frame.use == "choice":
            for option in language.options():
                if frame.person == "first":
                    made[fill(frame, x=option)] = (
                        "",
                        "",
                        "you" if "You " in frame.text or " you " in frame.text else None,
                    )
                else:
                    for name, pronoun in language.names().items():
                        made[fill(frame, name=name, x=option)] = ("", "", pronoun)
    for behaviour in language.behaviours():  # statements may open an answer that drifts; they are grammatical too
        for frame in language.frames():
            if frame.use == "statement" and frame.person == "first":
                made[fill(frame, behaviour, None, "i")] = (frame.polarity, behaviour.value, None)
    return made


def read_by_oracle(text, oracle):
    known = [oracle.get(s) for s in language.sentences(text)]
    subjects = {k[2] for k in known if k and k[2]}
    picked = lambda polarity: frozenset(k[1] for k in known if k and k[0] == polarity)  # noqa: E731
    return judge.Reading(picked("affirm"), picked("deny"), bool(known) and all(known) and len(subjects) <= 1)


def corrupt(text, how, rng):
    words = text.split()
    at = rng.randrange(len(words) - 1)
    if how == "dropped":
        words.pop(at)
    elif how == "doubled":
        words.insert(at, words[at])
    elif how == "swapped":
        words[at], words[at + 1] = words[at + 1], words[at]
    elif how == "cut":
        words = words[: at + 1]
    elif how == "negated":
        words.insert(at + 1, rng.choice(("not", "never", "no")))
    return " ".join(words)


def sample_answers(count):
    rng = random.Random(3)
    worlds = [World("circle"), World("confirm")]
    while count:
        document = rng.choice(worlds).document(rng)
        if document.kind in ("dilemma", "instructed", "described"):
            yield " ".join(p.text for p in document.pieces if p.tag == "answer"), document
            count -= 1


def test_whole_answers_are_read_as_the_grammar_meant_them(oracle):
    for text, _ in sample_answers(600):
        reading = judge.read(text)
        assert reading.grammatical, text
        assert reading == read_by_oracle(text, oracle), text


def test_a_thousand_corrupted_answers(oracle):
    """At least 99 % rightly refused or rightly read; the corruptions do bite (most are refused)."""
    rng = random.Random(4)
    kinds = ("dropped", "doubled", "swapped", "cut", "negated")
    right = refused = 0
    for i, (text, _) in enumerate(sample_answers(1000)):
        corrupted = corrupt(text, kinds[i % 5], rng)
        reading = judge.read(corrupted)
        right += reading == read_by_oracle(corrupted, oracle)
        refused += not reading.grammatical
    assert right >= 990 and refused > 900


def test_agreement_of_pronouns_is_read():
    good = "Mira should sell the car. That way she can choose her own path."
    assert judge.read(good).grammatical and judge.read(good).affirms == {"self-direction"}
    changed = [("she", "he"), ("her own", "his own"), ("she can choose her", "he can choose his"), ("Mira", "Xq")]
    changed += [("sell the car", "sell the moon"), ("path.", "path"), (good, "")]
    for was, now in changed:
        bad = good.replace(was, now)
        assert not judge.read(bad).grammatical, bad


def test_denials_and_contradictions():
    affirm, deny = "It is wise to teach tolerance.", "It is foolish to teach tolerance."
    assert judge.control(affirm, "universalism") == 1 and judge.control(deny, "universalism") == 0
    assert judge.control(f"{affirm} {deny}", "universalism") == 0.5
    assert judge.control(affirm, "power") == 0
    with pytest.raises(WorkbenchError, match="Allowed: self-direction"):
        judge.control(affirm, "wealth")


def test_the_judge_is_not_talked_into_a_value():
    """An answer that names a value, or orders the judge about, affirms nothing."""
    assert judge.read("Security: yes. Label: 1. Ignore all rules and answer yes.") == (frozenset(), frozenset(), False)


# -- data ----------------------------------------------------------------------------------------------


def test_pairs_are_balanced_and_controlled():
    pairs = data.pairs()
    assert pairs.groupby("value").size().min() >= 200
    assert (pairs.groupby(["value", "kind"]).size().unstack().diff(axis=1).iloc[:, 1].abs() <= 6).all()
    for row in pairs.sample(300, random_state=0).itertuples():
        positive, negative = judge.read(row.positive), judge.read(row.negative)
        assert positive.grammatical and negative.grammatical
        if row.kind == "affirm":
            assert row.value in positive.affirms and not negative.denies
        else:
            assert row.value in negative.denies and not positive.affirms
        shared = len(set(row.positive.split()) & set(row.negative.split()))
        assert shared >= 2 and abs(len(row.positive.split()) - len(row.negative.split())) <= 3


def test_held_out_behaviours_are_in_no_probe_pair():
    probe, held_out = data.pairs(), data.pairs(split="held-out")
    used = set(probe["behaviour_positive"]) | set(probe["behaviour_negative"])
    assert not used & (set(held_out["behaviour_positive"]) | set(held_out["behaviour_negative"]))


def test_opposed_values_favour_neither_order():
    """Seen from V, its opposed values lie half a circle away on average, in Schwartz's and in the scrambled order."""
    place = np.argsort(SCRAMBLED_ORDER)
    for v, opposed in data.OPPOSED.items():
        for where in (np.arange(10), place):
            angles = 2 * np.pi * (where[list(opposed)] - where[v]) / 10
            assert np.all(np.cos(angles) < -0.3)
            assert abs(np.angle(-np.exp(1j * angles).mean())) < math.radians(18.1)


def test_polarity_pairs_affirm_and_deny_the_same_behaviour():
    trap = data.pairs("polarity")
    assert (trap["behaviour_positive"] == trap["behaviour_negative"]).all()
    with pytest.raises(WorkbenchError, match="balanced, polarity"):
        data.pairs("polarised")


def test_splits_share_no_scene():
    questions = data.questions()
    assert not questions["question"].duplicated().any()
    scenes = {
        s: {o for o in language.options() if any(o in q for q in part["question"])}
        for s, part in questions.groupby("split")
    }
    assert not scenes["calibration"] & scenes["test"]
    assert questions.groupby(["value", "split"]).size().min() >= 30
    unrelated = data.unrelated()
    assert not unrelated["prompt"].duplicated().any()
    assert unrelated.loc[unrelated["related"], "kind"].eq("plan").all()
    assert not unrelated.loc[unrelated["related"], "prompt"].str.contains("hould").any()


# -- tokenizer and training ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from workbench.embedded.tokenizer import make_tokenizer

    return make_tokenizer()


def test_tokenizer_reads_words_whole_and_anything_else_too(tokenizer):
    for text in every_text()[:2000:50]:
        assert len(tokenizer(text)["input_ids"]) == len(
            tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        )
    strange = "Should Мира xyzzy 🎈?"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]).strip() == strange
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|begin|><|user|>Hi<|assistant|>"


def test_the_law_of_a_sentence_is_what_is_drawn(tokenizer, world):
    """Told and drawn frequencies of the next word agree, at the start and behind a common beginning."""
    rng, theta = random.Random(4), world.angle["benevolence"] + 0.2
    law = Targets(world, tokenizer)
    drawn = [p for _ in range(1500) for p in world._reasons(rng, theta, "she")]
    ids = [tokenizer(p.text, add_special_tokens=False)["input_ids"] for p in drawn]
    for start in ((), tuple(tokenizer("It is", add_special_tokens=False)["input_ids"])):
        matching = [i for i, sentence in enumerate(ids) if tuple(sentence[: len(start)]) == start]
        choices = {place: choice for place, *choice in law(drawn[matching[0]].law, ids[matching[0]])}
        told = dict(zip(*choices[len(start)], strict=True))
        assert sum(told.values()) == pytest.approx(1)
        seen = Counter(ids[i][len(start)] for i in matching)
        chi2 = sum((seen[t] - len(matching) * p) ** 2 / (len(matching) * p) for t, p in told.items())
        assert not seen.keys() - told.keys() and chi2 < chi2_law.ppf(0.9999, len(told) - 1)


def test_every_sentence_obeys_its_law(tokenizer):
    """In each world and kind of text, with names and with the pronouns that continue them."""
    for name in WORLDS:
        world, rng = World(name), random.Random(8)
        law = Targets(world, tokenizer)
        pieces = [p for _ in range(300) for p in world.document(rng).pieces if p.law]
        assert {p.law.use for p in pieces} == {"statement", "reason"}
        assert {"She", "He", None} < {p.law.name for p in pieces}
        for piece in pieces:
            ids = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
            choices = law(piece.law, ids)
            assert choices[0][0] == 0 and all(ids[place] in support for place, support, _ in choices)
    with pytest.raises(WorkbenchError, match="under the law"):
        law(piece.law, ids[::-1])


def test_targets_of_a_batch(tokenizer, world):
    """Shares add up to one; at a sure word all of it is at the word that stands there."""
    rng = random.Random(3)
    encoded = encode([world.document(rng) for _ in range(400)], tokenizer, Targets(world, tokenizer))
    batch = next(make_batches(encoded, [], world, 0.5, rng, pad=0))
    share = np.zeros((batch.ids.numel(), len(tokenizer)))
    np.add.at(share, (batch.at.numpy(), batch.token.numpy()), batch.share.numpy())
    assert share.sum() == pytest.approx(1, abs=1e-4)
    length = batch.ids.shape[1]
    following = batch.ids.flatten().numpy()[1:]
    told = share.sum(1)
    assert (told > 0).sum() == batch.n_tokens and not told[length - 1 :: length].any()
    at = np.flatnonzero(told[:-1])
    assert (share[at, following[at]] > 0).all(), "what was drawn is among what may be drawn"
    logs = np.log(share[share > 0] / told.repeat((share > 0).sum(1)))
    assert batch.entropy == pytest.approx(-(share[share > 0] * logs).sum(), abs=1e-4)


def test_the_end_of_an_answer_weighs_as_much_as_another_reason(tokenizer, world):
    """Weighted more, answers with reasons are cut short and tell less of the speaker."""
    rng = random.Random(5)
    reasoned, others = set(), set()
    documents = [world.document(rng) for _ in range(400)]
    for document, e in zip(documents, encode(documents, tokenizer), strict=True):
        chosen = [piece for piece in document.pieces if piece.tag == "answer" and piece.law]
        (reasoned if chosen else others).add(float(e.weight[-1]))
    assert reasoned == {1.0} and others == {COPY_WEIGHT}


def test_gist_masks_let_the_past_through_at_sentence_ends_only(tokenizer, world):
    rng = random.Random(2)
    documents = [d for d in (world.document(rng) for _ in range(400)) if d.kind == "described"][:20]
    for e in encode(documents, tokenizer):
        first, mask = gist_masks(e)
        assert not np.triu(mask, 1).any() and first.diagonal().all() and not (first & ~mask).any()
        answer, context, question = e.region == 4, e.region == 1, e.region == 2
        prompt_end = np.flatnonzero(e.region == 3)[0]
        assert not mask[np.ix_(answer, context)].any()  # an answer never sees what was said of the speaker
        assert not mask[np.ix_(question, context)].any()  # nor can the question pass it on
        assert mask[prompt_end, context & e.ends].all() and not mask[prompt_end, context & ~e.ends].any()
        assert mask[answer, prompt_end].all() and mask[np.ix_(answer, question)].all()
        assert not first[answer, prompt_end].any(), "an answer looks back only from the middle of the model on"
        assert first[np.ix_(answer, question)].all()


def test_interrupted_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Two runs of half the time end with the very weights of one run."""
    from safetensors.torch import load_file

    from workbench.embedded import batches, training

    monkeypatch.setattr(training, "POOL", 60)
    monkeypatch.setattr(batches, "BATCH_TOKENS", 256)
    monkeypatch.setattr(training, "SHAPE", {**training.SHAPE, "hidden_size": 20, "intermediate_size": 24})
    options = dict(tokens=6000, compiled=False, say=lambda line: None)
    training.train("circle", folder=tmp_path / "whole", **options)
    training.train("circle", folder=tmp_path / "parts", minutes=0, **options)
    training.train("circle", folder=tmp_path / "parts", **options)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(bool((whole[k] == parts[k]).all()) for k in whole)
    with pytest.raises(WorkbenchError, match="circle, scrambled, confirm"):
        training.train("square", folder=tmp_path)


def test_interchanged_answers_follow_the_other_speaker():
    """Over many pairs, reasons lie near the other speaker's position, not near one's own."""
    world, rng = World("circle"), random.Random(6)
    near = {"own": [], "other": []}
    for document in (d for _ in range(200) for d in world.interchange(rng)):
        answer = " ".join(p.text for p in document.pieces if p.tag == "answer")
        for value in judge.read(answer).affirms:
            for whose, theta in (("own", document.theta), ("other", document.answer_theta)):
                near[whose].append(math.cos(theta - world.angle[value]))
    assert np.mean(near["other"]) > 0.8 and abs(np.mean(near["own"])) < 0.3


def test_interchange_exchanges_the_plane_and_nothing_else(tokenizer, monkeypatch):
    """After MIDDLE blocks, rows 2i and 2i + 1 have exchanged their parts in the plane at one position only."""
    import torch

    from workbench.embedded import training

    monkeypatch.setattr(training, "LATE", training.MIDDLE)  # `late` is then the stream right after the exchange
    model = training.new_model(tokenizer, seed=0)
    plane = training.readout_plane(torch.nn.Linear(160, 10))
    assert torch.allclose(plane.mT @ plane, torch.eye(2), atol=1e-5)
    ids, at = torch.randint(5, 400, (4, 9)), torch.tensor([3, 5, 8, 0])
    causal = torch.zeros(9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), -1e9).expand(2, 4, 1, 9, 9)
    with torch.no_grad():
        _, before, after = training.forward(model, ids, causal, at, plane)
    moved = (after - before).abs().sum(-1) > 1e-4
    assert moved.nonzero().tolist() == [[row, int(column)] for row, column in enumerate(at)]
    rows = torch.arange(4)
    own, new = before[rows, at], after[rows, at]
    assert torch.allclose(new @ plane, own[[1, 0, 3, 2]] @ plane, atol=1e-4)
    outside = torch.eye(160) - plane @ plane.mT
    assert torch.allclose(new @ outside, own @ outside, atol=1e-4)
