"""What steering leaves of a model's other abilities: unrelated questions, and multiple choice read by likelihood.

The functions of the table of answers count prompts. A prompt that is asked while ten values are steered, or with
several seeds, is one cluster: its answers are averaged first, and an interval is Wilson's over as many trials as there
are prompts. A mean of several answers varies less than one answer, so that such an interval is a little wide and never
too narrow.

Multiple choice is read as MMLU is (Hendrycks et al. 2021): the choices stand in the prompt with letters, solved items
of the same subject before them, and the likeliest letter after the prompt's last token is the answer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..activations.forward import batches
from ..errors import WorkbenchError
from ..generate import keep_last
from ..models import Model
from ..rates import wilson
from ..steering.intervention import Intervention
from ..values import VALUES
from .answers import answer
from .judges import ExactJudge
from .texts import BATCH_TOKENS

PAIR = ["set", "value", "prompt", "temperature", "seed", "question"]
LETTERS = "ABCDEFGHIJ"
READ = ("letters", "texts")
MMLU_FILE = re.compile(r"(.+)_(dev|val|test)")

# -- the table of answers --------------------------------------------------------------------------------------


def right(answers: pd.DataFrame, unrelated: pd.DataFrame, judge: Any = None) -> pd.DataFrame:
    """The answers with a column `right`: 1, 0, or NaN where none is expected or the answer has a `note`.

    unrelated: prompt and answer, the right ones joined by "|" and "" where there is none (`load_unrelated`). judge:
    what has `right(answer, expected) -> bool`; None takes the exact judge, which compares word for word and so reads
    embedded worlds only: a real model's "It is Neptune." is not its "Neptune".
    """
    judge = judge or ExactJudge()
    expected = dict(zip(unrelated["prompt"], unrelated["answer"], strict=True))
    wanted = answers["question"].map(expected).fillna("").where(answers["note"] == "", "")
    if "set" in answers:  # a dilemma may be worded as a prompt is
        wanted = wanted.where(answers["set"].isin(["unrelated", "hard"]), "")
    told = [float(judge.right(a, w)) if w else np.nan for a, w in zip(answers["answer"], wanted, strict=True)]
    return answers.assign(right=told)


def unrelated_table(answers: pd.DataFrame, by: Sequence[str] = ("method", "value")) -> pd.DataFrame:
    """Share of right answers: `by` (and prompt, temperature where there are several), accuracy, low, high, n.

    answers: with the column `right` (see `right`), whose NaN do not count. n: prompts; low and high are Wilson's over
    them, several answers to one prompt being a cluster (see above). `by=["method"]` puts all steered values together.
    """
    if "right" not in answers:
        raise WorkbenchError("The share of right answers was asked for.", found="no column right",
                             do="Pass what right(answers, unrelated) returns.")  # fmt: skip
    return _rates(answers, [*by, *_several(answers)], {"accuracy": answers["right"]}).rename(
        columns={"accuracy_low": "low", "accuracy_high": "high"}
    )


def intact(answers: pd.DataFrame, by: Sequence[str] = ("set", "method"), base: str = "Base") -> pd.DataFrame:
    """Share of prompts whose answer is word for word that of `base`, of every other method, and who was steered.

    One row per `by` (and prompt, temperature where there are several): intact, the share of answers that equal the base
    model's to the same prompt at the same temperature and seed; opened, the share for which the gate opened (1 without
    gate); intact_open, the first among those. Each with low and high (intact_low ...) and a number of prompts: n, and
    n_open for the last. Answers with a `note`, their own or the base's, do not count.

    Where the gate stays closed the model is the base model, so that only opened prompts can differ. Greedily an answer
    may stay the same under steering too; at temperature 1 one other token early on makes another answer.
    Raises WorkbenchError where `base` did not answer everything.
    """
    there = answers["method"] == base
    pairs = answers[~there].merge(answers.loc[there, [*PAIR, "answer", "note"]], "left", PAIR, suffixes=("", "_base"),
                                  validate="many_to_one")  # fmt: skip
    if missing := int(pairs["note_base"].isna().sum()):
        raise WorkbenchError(f"Answers that equal those of {base!r} were to be counted.",
                             found=f"{missing} of {len(pairs)} without an answer of it to compare with",
                             allowed=f"answers of {base!r} with the same {', '.join(PAIR)}")  # fmt: skip
    pairs = pairs[(pairs["note"] == "") & (pairs["note_base"] == "")]
    same, opened = (pairs["answer"] == pairs["answer_base"]).astype(float), pairs["open"].astype(float)
    by = [*by, *_several(answers)]
    table = _rates(pairs, by, {"intact": same, "opened": opened})
    among = _rates(pairs, by, {"intact_open": same.where(pairs["open"])}).rename(columns={"n": "n_open"})
    return table.merge(among, on=by)


def _several(answers: pd.DataFrame) -> list[str]:
    """Columns that must not be mixed in one rate."""
    return [name for name in ("prompt", "temperature") if name in answers and answers[name].nunique() > 1]


def _rates(answers: pd.DataFrame, by: list[str], scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """One row per `by`: each score's mean over prompts, its low and high, n prompts (of the first score)."""
    per_prompt = answers[[*by, "question"]].assign(**scores).groupby([*by, "question"], sort=False)[[*scores]].mean()
    groups = per_prompt.groupby(by, sort=False)
    means, counts = groups.mean(), groups.count()
    out = {}
    for name in scores:
        low, high = wilson(means[name], counts[name])
        out |= {name: means[name], f"{name}_low": low, f"{name}_high": high}
    return means.assign(**out, n=counts[next(iter(scores))])[[*out, "n"]].reset_index()


def unrelated_accuracy(
    model: Model, methods: Mapping[str, Callable[[str], Intervention]], unrelated: pd.DataFrame,
    values: Sequence[str] = VALUES, split: str | None = "test", limit: int | None = None, judge: Any = None,
    **decoding: Any,
) -> pd.DataFrame:  # fmt: skip
    """Ask unrelated questions while steering: method, value, accuracy, low, high, n (`unrelated_table`).

    unrelated: columns prompt, kind, answer, related, split (`load_unrelated("embedded")`); related rows and those
    without an answer are left out. limit: at most so many prompts, spread over the kinds. judge: see `right`.
    """
    rows = unrelated[~unrelated["related"] & (unrelated["answer"] != "")]
    rows = rows[rows["split"] == split] if split else rows
    if limit is not None:
        turn = rows.groupby("kind").cumcount()
        rows = rows.loc[turn.sort_values(kind="stable").index[:limit]]
    asked = pd.concat([pd.DataFrame({"value": value, "question": rows["prompt"]}) for value in values])
    return unrelated_table(right(answer(model, methods, asked, **{"max_new_tokens": 24, **decoding}), rows, judge))


# -- likelihoods -----------------------------------------------------------------------------------------------


class Likelihood(NamedTuple):
    """logprob: nats of the whole continuation. greedy: each of its tokens is the likeliest. cut: tokens left out."""

    logprob: float
    greedy: bool
    cut: int


def split_ids(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what follows it, tokenised as one text and as lm-eval divides it.

    Spaces at the context's end go to the continuation. An empty context is the token with which texts begin, or, for
    models without one, the end token.
    """
    text = context.rstrip()
    continuation = context[len(text) :] + continuation
    if not text:
        first = model.bos_id if model.bos_id is not None else next(iter(sorted(model.eos_ids)), model.pad_id)
        return [first], [token for token in model.encode([continuation])[0] if token != model.bos_id]
    whole, before = model.encode([text + continuation, text])
    return before, whole[len(before) :]


@torch.no_grad()
def likelihoods(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    steer: Intervention | None = None,
    questions: Sequence[str] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> list[Likelihood]:
    """log P(continuation | context) of each pair of token ids (context, continuation), steered.

    The context is the prompt: gates and shifts are read at its last token, which is the first token that the scopes
    "generated" and "token" steer. questions: what each pair asks, for gates that read text. What is longer than the
    model's context is cut from the left, BOS and all, as lm-eval does; `cut` tells by how much. Continuations that
    differ in their last token only, such as the letters of one question, share a row of a forward pass. Prompts are
    taken as they stand: see `Intervention.edit_prompts` for methods that edit them.

    Raises WorkbenchError for an empty side, a continuation longer than the context, NaN, and while an intervention is
    on already.
    """
    asked = f"The likelihoods of {len(pairs)} texts under {model.name} were asked for."
    if model.active:
        raise WorkbenchError(asked, found=f"{model.active[0]!r} is on", do="Leave its context, or pass it as steer=.")
    jobs: dict[tuple[tuple[int, ...], int, str], list[int]] = {}
    out: list[Likelihood] = [Likelihood(np.nan, False, 0)] * len(pairs)
    for number, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= model.context:
            raise WorkbenchError(asked, found=f"pair {number} of {len(context)} and {len(continuation)} tokens",
                                 allowed=f"a context, and a continuation of 1 to {model.context} tokens")  # fmt: skip
        fed = (*context, *continuation[:-1])[-model.context :]
        key = fed, len(fed) - len(continuation) + 1, "" if questions is None else questions[number]
        jobs.setdefault(key, []).append(number)
    rows = list(jobs)
    parts = batches([len(fed) for fed, *_ in rows], batch_tokens)
    for batch in tqdm(parts, desc="likelihoods", disable=not progress):
        own = [rows[at] for at in batch]
        ids, mask = model.pad([fed for fed, *_ in own], side="left")
        lengths, asks, keep = [n for _, n, _ in own], [q for *_, q in own], max(len(f) - n + 1 for f, n, _ in own)
        reads = None if questions is None else asks
        steered = steer.on(model, prompt_lengths=lengths, questions=reads) if steer and steer.layers else nullcontext()
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
        with steered:
            logits = model.speaker(input_ids=ids, **given, **keep_last(model, keep)).logits[:, -keep:].float()
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise WorkbenchError(asked, found="NaN or inf in the logits",
                                 do="Steer less, or load the model with dtype='float32'.")  # fmt: skip
        words = logits.log_softmax(-1)
        for row, (fed, n, question) in enumerate(own):
            said = words[row, n - len(fed) - 1 :]
            best = said.argmax(-1)
            for number in jobs[fed, n, question]:
                context, continuation = pairs[number]
                target = torch.tensor(continuation, device=said.device)
                logprob = float(said.gather(1, target[:, None]).sum())
                cut = len(context) + len(continuation) - 1 - len(fed)
                out[number] = Likelihood(logprob, bool((best == target).all()), cut)
    return out


# -- multiple choice -------------------------------------------------------------------------------------------


def load_choices(source: str | Path | pd.DataFrame, shots: int = 5) -> pd.DataFrame:
    """Multiple-choice items: subject, split ("dev" or "test"), question, choices (list of str), answer (its number).

    source: MMLU's folder (dev/, val/ and test/, or their files), files SUBJECT_SPLIT.csv with question, choices, answer
    and with or without a heading line; one such CSV; or a data frame with question, answer (a number or a letter),
    choices or choice0, choice1 ... or A, B ..., and, where there are such, subject and split. Of a subject without dev
    items the first `shots` test items become it: they are shown solved before the others, and not counted.
    """
    table = source if isinstance(source, pd.DataFrame) else _mmlu(Path(source).expanduser())
    asked = f"Multiple choice from {'a data frame' if table is source else repr(Path(str(source)).name)} was asked for."
    letters, numbered = ([c for c in names if c in table] for names in (LETTERS, [f"choice{k}" for k in range(10)]))
    if not {"question", "answer"} <= {*table} or not ("choices" in table or len(letters) > 1 or len(numbered) > 1):
        raise WorkbenchError(asked, found=f"columns {', '.join(map(str, table))}",
                             allowed="question, answer, and choices, choice0 ..., or A ...")  # fmt: skip
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=1):
        given = row["choices"] if "choices" in row else [row[c] for c in numbered or letters if pd.notna(row[c])]
        choices, told = [str(choice) for choice in given], str(row["answer"]).strip()
        number = LETTERS.find(told) if told.isalpha() and len(told) == 1 else int(told) if told.isdecimal() else -1
        if not 0 <= number < len(choices) or not all(choices) or not str(row["question"]).strip():
            raise WorkbenchError(asked, found=f"row {line} with answer {told!r} and choices {choices}"[:200],
                                 allowed="a question, choices, and the number (from 0) or letter of one")  # fmt: skip
        rows.append({"subject": str(row.get("subject", "")), "split": str(row.get("split", "test")),
                     "question": str(row["question"]), "choices": choices, "answer": number})  # fmt: skip
    items = pd.DataFrame(rows, columns=["subject", "split", "question", "choices", "answer"])
    items = items[items["split"].isin(["dev", "test"])].reset_index(drop=True)
    for _, own in items.groupby("subject", sort=False):
        if "dev" not in set(own["split"]):
            items.loc[own.index[:shots], "split"] = "dev"
    if lacking := sorted({*items["subject"]} - {*items.loc[items["split"] == "test", "subject"]}):
        raise WorkbenchError(asked, found=f"{', '.join(map(repr, lacking))} without test items beside {shots} shots")
    if items.empty:
        raise WorkbenchError(asked, found="no items of split dev or test")
    return items


def _mmlu(path: Path) -> pd.DataFrame:
    files = [path] if path.is_file() else sorted(path.glob("*.csv")) + sorted(path.glob("[dvt]*/*.csv"))
    named = [(file, found) for file in files if (found := MMLU_FILE.fullmatch(file.stem))]
    if not named:
        raise WorkbenchError(f"Multiple choice from {path.name!r} was asked for.", found="no such files there",
                             allowed="MMLU's folder (dev/, test/), or files such as astronomy_test.csv")  # fmt: skip
    parts = []
    for file, found in named:  # "None" and "NA" are choices, no missing cells
        table = pd.read_csv(file, header=None, dtype=str, keep_default_na=False, encoding="utf-8")
        table = table[1:] if table.iloc[0, 0] == "question" else table
        table.columns = ["question", *LETTERS[: table.shape[1] - 2], "answer"]
        parts.append(table.assign(subject=found[1], split=found[2]))
    return pd.concat(parts, ignore_index=True)


def about(subject: str) -> str:
    """What MMLU says before the items of a subject."""
    named = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {named}.\n\n" if subject else ""


def choice_contexts(items: pd.DataFrame, shots: int = 5, read: str = "letters") -> list[str]:
    """What stands before the answer of each test item: its subject, solved dev items, its question, "Answer:"."""
    contexts, before = [], {}
    for subject, dev in items[items["split"] == "dev"].groupby("subject", sort=False):
        shown = dev.head(shots).to_dict("records")
        before[subject] = [f"{_ask(item, read)} {_choices(item, read)[item['answer']]}\n\n" for item in shown]
    for item in items[items["split"] == "test"].to_dict("records"):
        if len(solved := before.get(item["subject"], [])) < shots:
            raise WorkbenchError(f"{shots} solved items before each question of {item['subject']!r} were asked for.",
                                 found=f"{len(solved)} dev items", do="Ask for fewer shots.")  # fmt: skip
        contexts.append("".join([about(item["subject"]), *solved[:shots], _ask(item, read)]))
    return contexts


def _ask(item: Mapping[Any, Any], read: str) -> str:
    if read == "texts":
        return item["question"].strip()
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item["choices"], strict=False))
    return f"{item['question'].strip()}{listed}\nAnswer:"


def _choices(item: Mapping[Any, Any], read: str) -> list[str]:
    return item["choices"] if read == "texts" else list(LETTERS[: len(item["choices"])])


def read_choices(
    model: Model,
    items: pd.DataFrame | str | Path,
    steer: Intervention | None = None,
    shots: int = 5,
    read: str = "letters",
    chat: bool = False,
    limit: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> pd.DataFrame:
    """The test items with `chosen` (number of the likeliest choice), `right`, and `cut` (tokens of the context).

    read: "letters" lists the choices and compares " A", " B" ... after "Answer:"; "texts" compares the choices
    themselves after the bare question, by the sum of their tokens' log probabilities, which favours short ones. chat:
    put the whole context into a user's turn. limit: so many test items of each subject. steer: its gate, where it reads
    text, reads the bare question; a method that edits prompts (ICA) puts its instruction, and its gate reads, before
    the whole context. Ties go to the first choice.
    """
    if read not in READ:
        raise WorkbenchError(f"Multiple choice read by {read!r} was asked for.", allowed=", ".join(map(repr, READ)))
    items = load_choices(items, shots)
    if limit is not None:
        turn = items.groupby(["subject", "split"]).cumcount()
        items = items[(items["split"] == "dev") | (turn < limit)]
    contexts, test = choice_contexts(items, shots, read), items[items["split"] == "test"].reset_index(drop=True)
    prompts: Sequence[Any] = contexts if steer is None else steer.edit_prompts(contexts, model)[0]
    contexts, space = (model.render(prompts), "") if chat else (list(map(str, prompts)), " ")
    each = [_choices(item, read) for item in test.to_dict("records")]
    pairs = [split_ids(model, c, space + said) for c, choices in zip(contexts, each, strict=True) for said in choices]
    asks = [q for q, choices in zip(test["question"], each, strict=True) for _ in choices]
    found = iter(likelihoods(model, pairs, steer, asks, batch_tokens))
    scored = [[next(found) for _ in choices] for choices in each]
    chosen = [int(np.argmax([one.logprob for one in own])) for own in scored]
    return test.assign(chosen=chosen, right=test["answer"] == chosen, cut=[max(o.cut for o in own) for own in scored])


def choice_accuracy(
    model: Model, items: pd.DataFrame | str | Path, steer: Intervention | None = None, **options: Any
) -> pd.DataFrame:
    """Share of test items answered rightly: subject (the last row: "all" items together), accuracy, low, high, n, cut.

    cut: items whose context was too long and was cut from the left, as lm-eval does: few-shot figures of a model with a
    short context say little. options: shots, read, chat, limit, batch_tokens, as for `read_choices`.
    """
    told = read_choices(model, items, steer, **options)
    rows = []
    for subject, own in [*told.groupby("subject", sort=False), ("all", told)]:
        rate, n = float(own["right"].mean()), len(own)
        low, high = wilson(rate, n)
        rows.append(dict(subject=subject, accuracy=rate, low=low, high=high, n=n, cut=int((own["cut"] > 0).sum())))
    return pd.DataFrame(rows)
