"""The study: every method on every value's questions, answered, judged and kept.

A study is a plan of *jobs* (set, method, value, prompt, temperature, seed). What a job asks of a steered model is a
*part*: its answers depend on nothing but the model's weights, the intervention with all its numbers, the prompts and
the decoding, and are filed under the hash of these. So jobs that ask the same share a part (Base, which knows no
value), a killed study goes on where it was, another process or a Ray worker may compute any part, and a study that
grows (one more method) pays for what is new. `answers.parquet` and, last of all, `manifest.json` say that it is whole.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model, load_model
from ..probes import Probes
from ..probes.files import written_whole
from ..prompts import data_hash
from ..steering.base import Base
from ..steering.intervention import Intervention
from .answers import Methods, ask, ask_quietly, default_temperature, select, warn_of_cuts
from .capability import right
from .judges import NO_JUDGE, Judge, default_judge, judged
from .results import FORMAT, Evaluation
from .texts import perplexity
from .tuning import Tuning

ENGINES = ("local", "ray")
UNRELATED_TOKENS = 24  # the most that an answer to an unrelated question is given


class Job(NamedTuple):
    """What distinguishes answers; see `study` for the sets."""

    set: str
    method: str
    value: str
    prompt: str
    temperature: float
    seed: int


class Part(NamedTuple):
    """What a steered model is asked: `questions` with an instruction each, and how it decodes."""

    steer: Intervention
    about: tuple[str, ...]
    questions: tuple[str, ...]
    instructions: tuple[str | None, ...]
    decoding: dict[str, Any]


def study(
    model: Model,
    methods: Methods,
    questions: pd.DataFrame,
    judge: Judge | None = None,
    split: str | None = "test",
    limit: int | None = None,
    negative: bool | pd.DataFrame = False,
    pooled: int = 0,
    unrelated: pd.DataFrame | None = None,
    hard: pd.DataFrame | None = None,
    temperature: float | Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    store: str | Path | None = None,
    tuning: Mapping[str, Tuning] | None = None,
    judged_values: str = "all",
    fluency: bool = False,
    engine: str = "local",
    workers: int = 2,
    address: str | None = None,
    progress: bool = False,
    **decoding: Any,
) -> Evaluation:
    """Ask, judge and keep; the sets of questions:

    - "own": each value's questions under steering that value, at every temperature and seed; with `negative` once
      more behind a negative prompt, `model.instruct(value, "low")` or, in turn, the prompts of a table (value, prompt);
    - "pooled": with `pooled` above 0 the first so many questions of *every* value under steering each value (first
      temperature);
    - "unrelated", "hard": prompts of these tables (`load_unrelated`; rows of the calibration split and related rows are
      left out) under steering each value (first temperature and seed). Where the table has answers and the judge can
      tell (`right`), the column `right` says whether it was answered rightly.

    methods: name -> function from the steered value, which may return None for a value that the method cannot steer;
    "Base" is added where it is missing, since everything is read against it. questions: columns value, question, split;
    `split` of them, at most `limit` per value. judge: None takes the exact judge for embedded models, and none for
    others. judged_values: "all", or "own" for the steered value only, which costs a tenth but gives no leakage.
    temperature: one or several, the first is the main one; None is 1 for embedded models and greedy for others;
    greedily one seed is enough. tuning: how strengths were chosen, for the report. fluency: perplexity of the answers
    under the unsteered model too, where `kl` is told. store: a folder that keeps all answers; the same call goes on
    after a kill. engine: "ray" spreads the parts over `workers` of a local Ray or the one at `address`; the answers are
    the same. decoding: max_new_tokens, batch_size and kl, as for `answers.ask`; kl, which takes as long as the answers
    do, for own questions at the first temperature and seed only.

    Raises WorkbenchError for tables without what is asked and for interventions of another model, before anything runs.
    """
    if engine not in ENGINES:
        raise WorkbenchError(f"An evaluation by engine {engine!r} was asked for.", allowed=", ".join(ENGINES))
    if model.active:
        raise WorkbenchError("An evaluation was asked for.", found=f"{model.active} already on", do="Leave it first.")
    chosen = select(questions, split, limit)
    judge = judge or default_judge(model)
    temperatures = [default_temperature(model)] if temperature is None else np.atleast_1d(temperature).tolist()
    methods = methods if "Base" in methods else {"Base": lambda _: Base(), **methods}
    tables = {"own": chosen, "pooled": chosen.groupby("value", sort=False).head(pooled) if pooled else chosen[:0]}
    for name, table in (("unrelated", unrelated), ("hard", hard)):
        if table is not None:
            table = table[~table["related"]] if "related" in table else table
            table = table[table["split"] == split] if split and "split" in table else table
            tables[name] = pd.DataFrame({"value": "", "question": table["prompt"]})
    made = {(name, value): methods[name](value) for name in methods for value in dict.fromkeys(chosen["value"])}
    steers = {key: steer for key, steer in made.items() if steer is not None}
    for steer in {id(steer): steer for steer in steers.values()}.values():
        steer.check(model)
    told = _negative(model, chosen, negative)
    plan = list(_plan(steers, tables, told, [float(t) for t in temperatures], seeds, decoding))
    keys = _keys(model, [part for _, part in plan])
    parts = {key: part for key, (_, part) in zip(keys, plan, strict=True)}
    folder = None if store is None else Path(store)
    answers = _answered(model, parts, folder, engine, workers, address, progress)
    rows = []
    for key, (job, part) in zip(keys, plan, strict=True):
        rows.append(answers[key].assign(**job._asdict(), about=list(part.about)))
    table = pd.concat(rows, ignore_index=True)
    first = [*Job._fields, "about"]
    table = table[[*first, *(column for column in table if column not in first)]]
    if fluency:
        main = pd.Series({"set": "own", "prompt": "none", "temperature": temperatures[0], "seed": seeds[0], "note": ""})
        said = table[(table[main.index] == main).all(axis=1)]
        table["perplexity"] = pd.Series(perplexity(model, list(said["question"]), list(said["answer"])), said.index)
    if judge is not None:
        table = judged(table, judge, judged_values)
        expected = [t for t in (unrelated, hard) if t is not None and "answer" in t]
        if expected and hasattr(judge, "right"):
            table = right(table, pd.concat(expected), judge)
    result = Evaluation(
        table,
        {
            "format": FORMAT,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": dict(model.provenance),
            "judge": None if judge is None else judge.name,
            "judging": judge.told() if hasattr(judge, "told") else "",  # type: ignore[union-attr]
            "questions": {name: data_hash(t.reset_index(drop=True)) for name, t in tables.items() if len(t)},
            "split": split,
            "temperatures": temperatures,
            "seeds": list(seeds),
            "decoding": decoding,
            "negative": sorted({*told.values()} - {None}) if negative is not False else [],
            "methods": {name: {v: repr(s) for (n, v), s in steers.items() if n == name} for name in methods},
        },
        {name: tuned.curve for name, tuned in (tuning or {}).items() if len(tuned.curve)},
        [*_unable(made), *_missing(judge, tables, negative, seeds, temperatures, judged_values)],
    )
    if folder is not None:
        result.save(folder)
    return result


def _plan(
    steers: Mapping[tuple[str, str], Intervention],
    tables: Mapping[str, pd.DataFrame],
    told: Mapping[Any, str | None],
    temperatures: Sequence[float],
    seeds: Sequence[int],
    decoding: Mapping[str, Any],
) -> Iterator[tuple[Job, Part]]:
    """All jobs, the main figures first: a study that was stopped early has them."""
    for set_, table in tables.items():
        prompts = ("none", "negative") if set_ == "own" and any(told.values()) else ("none",)
        for prompt, t in itertools.product(prompts, temperatures if set_ == "own" else temperatures[:1]):
            for seed in seeds[:1] if t == 0 or set_ in ("unrelated", "hard") else seeds:
                for (method, value), steer in steers.items():
                    rows = table[table["value"] == value] if set_ == "own" else table
                    if rows.empty:
                        continue
                    each = tuple(told[index] for index in rows.index) if prompt == "negative" else (None,) * len(rows)
                    decode = {"max_new_tokens": 64, **decoding, "temperature": t, "seed": int(seed)}
                    if set_ in ("unrelated", "hard"):
                        decode["max_new_tokens"] = min(decode["max_new_tokens"], UNRELATED_TOKENS)
                    if (set_, prompt, t, seed) != ("own", "none", temperatures[0], seeds[0]):
                        decode.pop("kl", None)
                    part = Part(steer, tuple(rows["value"]), tuple(rows["question"]), each, decode)
                    yield Job(set_, method, value, prompt, t, int(seed)), part


def _negative(model: Model, questions: pd.DataFrame, negative: bool | pd.DataFrame) -> dict[Any, str | None]:
    """The negative prompt of each question, by the row's index."""
    if negative is False:
        return dict.fromkeys(questions.index)
    if negative is True:
        by_value = {value: [model.instruct(value, "low")] for value in dict.fromkeys(questions["value"])}
    else:
        by_value = negative.groupby("value")["prompt"].agg(list).to_dict()
    if missing := sorted(set(questions["value"]) - set(by_value)):
        raise WorkbenchError("Negative prompts were to be put before questions.", found=f"none for {missing}",
                             do="Give a table with columns value, prompt, or negative=True.")  # fmt: skip
    turn = questions.groupby("value").cumcount()
    return {
        index: by_value[value][n % len(by_value[value])]
        for index, value, n in zip(questions.index, questions["value"], turn, strict=True)
    }


def _keys(model: Model, parts: Sequence[Part]) -> list[str]:
    """The hash under which each part is filed."""
    of_steer: dict[int, str] = {}
    for part in parts:
        if id(part.steer) not in of_steer:
            arrays, meta = part.steer.pack()
            digest = hashlib.sha256(json.dumps(meta, default=str, sort_keys=True).encode())
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
            of_steer[id(part.steer)] = digest.hexdigest()
    return [
        hashlib.sha256(
            json.dumps(
                [FORMAT, model.fingerprint, model.provenance["template"], of_steer[id(part.steer)], *part[2:]],
                default=str, sort_keys=True,
            ).encode()
        ).hexdigest()[:32]
        for part in parts
    ]  # fmt: skip


def _answered(
    model: Model, parts: Mapping[str, Part], folder: Path | None, engine: str, workers: int, address: str | None,
    progress: bool,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Every part's answers: those that the folder holds, and the others computed now and filed at once."""
    files = {key: folder / "parts" / f"{key}.parquet" for key in parts} if folder else {}
    done = {key: table for key, file in files.items() if (table := _read(file, parts[key])) is not None}
    left = {key: part for key, part in parts.items() if key not in done}
    work = _on_ray(model, left, workers, address) if engine == "ray" else _here(model, left)
    with tqdm(
        total=sum(len(part.questions) for part in parts.values()), desc="answers", unit="answer", smoothing=0.05,
        initial=sum(map(len, done.values())), disable=not progress,
    ) as bar:  # fmt: skip
        for key, table in work:
            if key in files:
                with written_whole(files[key]) as partial:
                    table.to_parquet(partial, index=False)
            done[key] = table
            bar.update(len(table))
    return done


def _read(file: Path, part: Part) -> pd.DataFrame | None:
    """A filed part; one that cannot be read is computed again."""
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError):  # pyarrow's errors are of these
        return None
    return table if table["question"].tolist() == list(part.questions) else None


def _here(model: Model, parts: Mapping[str, Part]) -> Iterator[tuple[str, pd.DataFrame]]:
    cut: list[str] = []
    for key, part in parts.items():
        table, was_cut = ask_quietly(model, part.steer, part.questions, part.instructions, **part.decoding)
        cut += [part.steer.name] * was_cut
        yield key, table
    warn_of_cuts(model, cut)


def _on_ray(
    model: Model, parts: Mapping[str, Part], workers: int, address: str | None
) -> Generator[tuple[str, pd.DataFrame], None, None]:
    """The same on Ray's workers: each loads the model once; interventions travel as their files would."""
    from ..cluster import spread

    source, fingerprint = model.source, model.fingerprint

    def build() -> Callable[[Any], pd.DataFrame]:
        own = load_model(**source)
        if own.fingerprint != fingerprint:
            raise WorkbenchError(f"A worker was to let {own.name} answer.", found="other weights under that name",
                                 do="The model must be the same on every machine of the cluster.")  # fmt: skip

        def work(task: Any) -> pd.DataFrame:
            (arrays, meta), questions, instructions, decoding = task
            return ask(own, Intervention.unpack(arrays, meta, own), questions, instructions, **decoding)

        return work

    keys = list(parts)
    tasks = [(part.steer.pack(), part.questions, part.instructions, part.decoding) for part in parts.values()]
    gpus = 1.0 if model.device.type == "cuda" else 0.0
    threads = max(1, torch.get_num_threads() // max(workers, 1)) if address is None else None
    for index, table in spread(build, tasks, workers, address, threads, gpus, tqdm.write):
        yield keys[index], table


def _unable(made: Mapping[tuple[str, str], Intervention | None]) -> list[str]:
    by_method: dict[str, list[str]] = {}
    for (name, value), steer in made.items():
        if steer is None:
            by_method.setdefault(name, []).append(value)
    return [f"{name} cannot steer {', '.join(values)}" for name, values in by_method.items()]


def _missing(
    judge: Judge | None, tables: Mapping[str, pd.DataFrame], negative: Any, seeds: Sequence[int],
    temperatures: Sequence[float], judged_values: str,
) -> list[str]:  # fmt: skip
    """What was not run, and so what cannot be concluded."""
    told = {
        NO_JUDGE: judge is None,
        "no negative prompts: whether methods withstand them is not known": negative is False,
        "no pooled questions: leakage is read on each steered value's own questions only": not len(tables["pooled"]),
        "no unrelated prompts: whether other abilities are kept is not known": "unrelated" not in tables,
        "no hard unrelated prompts": "hard" not in tables,
        "one seed: the floor of leakage is not measured by Base against itself": len(seeds) < 2 and temperatures[0] > 0,
        "only the steered value was judged: there is no leakage": judged_values == "own",
        "greedy decoding only": not any(temperatures),
    }
    return [what for what, holds in told.items() if holds]


def evaluate(
    model: Model,
    methods: Methods,
    questions: pd.DataFrame,
    judge: Judge | None = None,
    reader: Probes | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The table of a `study`: a row per method and value, with csr, fr, leakage and n; see `Evaluation.table`.

    judge: None takes the exact judge for embedded models; for other models csr and fr stay empty, and the table's
    attrs["reason"] says why. reader: probes fitted on *other* pairs than those that steer; adds `p_reader`, the mean
    P_V of the answers at the reader's chosen layer: a reading by a probe, not a judgement. options: of `study`, such
    as limit, temperature, seeds, negative, store; with a store, `open_evaluation(store)` has everything else.
    """
    result = study(model, methods, questions, judge, **options)
    table = result.table()
    if reader is not None:
        keys = [name for name in ("method", "value", "prompt", "temperature") if name in table]
        own = result.answers[result.answers["set"] == "own"]
        table = table.merge(_read_by(model, own, reader, keys), on=keys, how="left")
    if NO_JUDGE in result.missing:
        table.attrs["reason"] = NO_JUDGE
    return table


def _read_by(model: Model, answers: pd.DataFrame, reader: Probes, keys: list[str]) -> pd.DataFrame:
    """Mean P_V of the answers under `reader` at its chosen layer: keys, p_reader. Empty answers count .5."""
    layer = reader.choose_layer()
    answers = answers[answers["note"] == ""].reset_index(drop=True)
    said = (answers["answer"].str.strip() != "").to_numpy()
    p = np.full(len(answers), 0.5)
    if said.any():
        read = reader.probability(capture(model, answers["answer"][said].tolist(), layers=[layer]).sel(layer=layer))
        p[said] = [float(read.sel(value=v)[i]) for i, v in enumerate(answers["value"][said])]
    return answers.assign(p_reader=p).groupby(keys, sort=False)["p_reader"].mean().reset_index()


__all__ = ["evaluate", "study"]
