"""lm-eval on the steered model: MMLU and any other task of the Language Model Evaluation Harness, offline.

    group = write_mmlu("tasks", "mmlu/data")
    table = run_tasks(model, {"Base": None, "ConVA": steer}, [group], folder="tasks")

The harness writes each prompt (the *context*) and asks for likelihoods of continuations or for text. The context is
the prompt in the workbench's sense: gates and shifts are read at its last token, the first that the scopes
"generated" and "token" steer. A gate that reads text, and the one of a method that edits prompts, reads the whole
context, solved examples too, since nothing tells the question apart there; `choice_accuracy` shows it the question.
A method that edits prompts (ICA) puts its instruction before the whole context or, with a chat template, before the
last user's turn.

A folder of tasks is a program: lm-eval renders their templates without a sandbox and runs what they name by
`!function`. Run those of people whose code you would run. Their data files must lie inside the folder.

Source: Gao et al., lm-evaluation-harness (0.4.13 was read). Import of this module needs the extra `eval`.
"""

import contextlib
import difflib
import io
import json
import logging
import os
import random
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..generate import generate
from ..models import Model
from ..steering.intervention import Intervention
from .capability import LETTERS, about, likelihoods, load_choices, split_ids
from .texts import BATCH_TOKENS

_before = {*os.environ}  # lm-eval adds to it when it is imported
try:
    import lm_eval.api.task
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as problem:
    raise WorkbenchError("The Language Model Evaluation Harness was asked for.", found=f"{problem}",
                         do='pip install "value-workbench[eval]"') from None  # fmt: skip
finally:
    for _added in {*os.environ} - _before:
        del os.environ[_added]

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "shots": 1234}  # as lm-eval's own command sets them
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}  # settings of text that generate has too
FILES = ("json", "csv", "parquet", "text")  # kinds of data files that a local task may read: no pickle
RESAMPLES = 1000  # for metrics without a standard error of their own


class SteeredLM(LM):
    """A model under one intervention, as lm-eval asks it: likelihoods, and text until a stop string.

    chat: the contexts come written by the model's chat template (`apply_chat_template`), and are tokenised as they
    stand. batch_tokens: padded tokens per forward pass. cut: requests so far whose context was cut from the left
    because the model's own is shorter, as lm-eval does.
    """

    def __init__(
        self,
        model: Model,
        steer: Intervention | None = None,
        chat: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool = False,
    ):
        super().__init__()
        if chat and not model.has_chat_template:
            raise WorkbenchError(f"Tasks in the chat template of {model.name} were asked for.", found="no template",
                                 do="Take chat=False.")  # fmt: skip
        if steer is not None:
            steer.check(model)
        self.model, self.steer, self.chat, self.cut = model, steer, chat, 0
        self.batch_tokens, self.progress = batch_tokens, progress

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats of the continuation, whether decoding greedily would write it) per request (context, continuation)."""
        asked = [request.args for request in requests]
        edited = self._edited([context for context, _ in asked])
        pairs = [split_ids(self.model, edited[context], continuation) for context, continuation in asked]
        return self._likelihoods(pairs, [context for context, _ in asked])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, in windows of the model's context; each token is predicted once.

        There is no prompt in it. What is read at a prompt is read at a window's first token, and methods that edit
        prompts change nothing. A BOS is read and not predicted, where lm-eval's own models predict a second one.
        """
        pairs, owner, totals = [], [], [0.0] * len(requests)
        for number, request in enumerate(requests):
            first, tokens = split_ids(self.model, "", request.args[0])
            windows = get_rolling_token_windows(tokens, first[0], self.model.context, 1)
            own = list(map(make_disjoint_window, windows))
            pairs += own
            owner += [number] * len(own)
        asks = [requests[number].args[0] for number in owner]
        for number, (nats, _) in zip(owner, self._likelihoods(pairs, asks), strict=True):
            totals[number] += nats
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Text up to the first of its stop strings per request (context, settings), by `workbench.generate`.

        Settings: until, max_gen_toks, do_sample, temperature; what else would change sampled text is an error.
        """
        out = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for numbers in groups.values():
            settings: Any = dict(normalize_gen_kwargs(requests[numbers[0]].args[1]))
            settings.setdefault("temperature", float(settings["do_sample"]))
            if settings["temperature"] and (other := {*settings} - KNOWN):
                raise WorkbenchError(f"Text sampled with {', '.join(sorted(other))} was asked for by a task.",
                                     allowed=", ".join(sorted(KNOWN)))  # fmt: skip
            contexts = self._fitting([requests[number].args[0] for number in numbers], settings["max_gen_toks"])
            for first in tqdm(range(0, len(numbers), 16), desc="texts", disable=not self.progress):
                texts = self._until(contexts[first : first + 16], settings, first)
                for number, text in zip(numbers[first : first + 16], texts, strict=True):
                    out[number] = text
        return out

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's template writes it; lm-eval calls this. Needs `chat=True`.

        A template that refuses a system turn is given the chat without it, as lm-eval does, and a warning says so.
        """
        from jinja2 import TemplateError

        if not self.chat:
            raise WorkbenchError("A chat was to be written by the model's template.", found="SteeredLM(chat=False)",
                                 do="SteeredLM(model, steer, chat=True)")  # fmt: skip
        asks = max(number for number, turn in enumerate(chat_history) if turn["role"] == "user") + 1
        begin: list[Any] = chat_history[:asks]
        if self.steer is not None:
            begin = list(self.steer.edit_prompts([begin], self.model)[0][0])  # pyright: ignore[reportArgumentType]
        turns = [*begin, *chat_history[asks:]]
        how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt,
                               "continue_final_message": not add_generation_prompt}  # fmt: skip
        try:
            return str(self.model.tokenizer.apply_chat_template(turns, **how))
        except TemplateError:
            warnings.warn(f"The chat template of {self.model.name} takes no system turn: it is left out.", stacklevel=2)
            turns = [turn for turn in turns if turn["role"] != "system"]
            return str(self.model.tokenizer.apply_chat_template(turns, **how))

    @property
    def tokenizer_name(self) -> str:
        return self.model.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.model.tokenizer.chat_template) if chat_template else ""

    # -- parts -----------------------------------------------------------------------------------------------

    def _edited(self, contexts: Sequence[str]) -> dict[str, str]:
        """Each context as the method wants it asked."""
        each = list(dict.fromkeys(contexts))
        if self.steer is None or self.chat:  # a chat was edited before its template wrote it
            return dict(zip(each, each, strict=True))
        return dict(zip(each, map(str, self.steer.edit_prompts(each, self.model)[0]), strict=True))

    def _likelihoods(self, pairs: Sequence[Any], questions: Sequence[str]) -> list[tuple[float, bool]]:
        found = likelihoods(self.model, pairs, self.steer, questions, self.batch_tokens, self.progress)
        self.cut += sum(one.cut > 0 for one in found)
        return [(one.logprob, one.greedy) for one in found]

    def _fitting(self, contexts: list[str], room: int) -> list[str]:
        """Edited contexts that leave `room` in the model's own, cut from the left where they must be."""
        edited, least = self._edited(contexts), self.model.context - room
        if least < 1:
            raise WorkbenchError(f"Texts of {room} tokens were asked for by a task.",
                                 found=f"a context of {self.model.context}",
                                 do="Set generation_kwargs: max_gen_toks in the task's YAML.")  # fmt: skip
        out = []
        for context, ids in zip(contexts, self.model.encode([edited[context] for context in contexts]), strict=True):
            if len(ids) > least:
                self.cut += 1
                out.append(str(self.model.tokenizer.decode(ids[len(ids) - least + 1 :])))  # + 1: a BOS comes back
            else:
                out.append(edited[context])
        return out

    def _until(self, contexts: list[str], settings: Mapping[str, Any], first: int) -> list[str]:
        stops = [stop for stop in settings["until"] if stop]
        steer = self.steer if self.steer and self.steer.layers else None  # prompts are edited already
        texts = [""] * len(contexts)
        for texts in generate(
            self.model, contexts, steer=steer, max_new_tokens=settings["max_gen_toks"], chat=False, stream=True,
            temperature=settings["temperature"], seed=first, batch_size=len(contexts),
        ):  # fmt: skip
            if stops and all(any(stop in text for stop in stops) for text in texts):
                break
        pattern = "|".join(map(re.escape, stops)) or "(?!)"
        return [re.split(pattern, text, maxsplit=1)[0] for text in texts]


def run_tasks(
    model: Model,
    methods: Mapping[str, Intervention | None],
    tasks: Sequence[str],
    folder: str | Path | None = None,
    shots: int | None = 5,
    limit: int | None = None,
    chat: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> pd.DataFrame:
    """lm-eval's tasks under each method: task, method, metric, value, stderr, n; a group of tasks has rows of its own.

    methods: name -> intervention, None for the model as it is. tasks: names of tasks, groups or tags, first of those
    in `folder` (YAML files as lm-eval has them; data files by paths relative to their YAML), then of lm-eval's own.
    Nothing is downloaded: a task whose data is neither in the folder nor in Hugging Face's cache is an error. shots:
    solved examples before each question, None for each task's own number; tasks that demand 0 keep it. limit: so many
    items per task. chat: in the model's chat template, examples as turns.

    stderr is lm-eval's. `table.attrs["cut"]`: per method, requests whose context was cut; a warning tells of them. The
    same shots are shown under every method. Seeds, logging, environment are afterwards as they were.
    """
    asked = f"The tasks {', '.join(tasks)} were asked for."
    if isinstance(tasks, str):
        raise WorkbenchError("A list of tasks was asked for.", found="one string", do="Pass [task].")
    rows, cut = [], {}
    with _quiet(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        loaded = _load(list(tasks), None if folder is None else Path(folder).expanduser().resolve(), cache, asked)
        for task in loaded["tasks"].values():
            if shots is not None and task.get_config("num_fewshot") != 0:
                task.set_config("num_fewshot", shots)
        for name, steer in methods.items():
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(SEEDS["shots"])
            lm = SteeredLM(model, steer, chat, batch_tokens, progress)
            with contextlib.redirect_stdout(io.StringIO()):
                found: Any = run(lm, loaded, limit=limit, log_samples=False, bootstrap_iters=RESAMPLES,
                                 apply_chat_template=chat, fewshot_as_multiturn=chat)  # fmt: skip
            rows += [{"task": task, "method": name, **row} for task in found["results"] for row in _rows(found, task)]
            cut[name] = lm.cut
    if sum(cut.values()):
        warnings.warn(f"Contexts were longer than that of {model.name} ({model.context} tokens) and cut from the left: "
                      f"{', '.join(f'{name} {n}' for name, n in cut.items())} requests.", stacklevel=2)  # fmt: skip
    table = pd.DataFrame(rows, columns=["task", "method", "metric", "value", "stderr", "n"])
    table.attrs["cut"] = cut
    return table


def _rows(found: Mapping[str, Any], task: str) -> Iterator[dict[str, Any]]:
    """One line per metric; lm-eval names them "acc,none", after the filter that the answers went through."""
    told = found["results"][task]
    for key, value in told.items():
        metric, comma, answer_filter = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = told.get(f"{metric}_stderr,{answer_filter}")
            yield {"metric": metric if answer_filter == "none" else key, "value": value,
                   "stderr": stderr if isinstance(stderr, float) else np.nan, "n": told["sample_len"]}  # fmt: skip


def _load(tasks: list[str], folder: Path | None, cache: str, asked: str) -> Any:
    """Tasks by name, made by lm-eval."""
    if folder is not None and not folder.is_dir():
        raise WorkbenchError(asked, found=f"no folder {folder.name!r}")
    manager = TaskManager(include_path=folder, include_defaults=False)
    own = manager.all_tasks
    if not {*tasks} <= {*own}:
        manager = TaskManager(include_path=folder)  # reads thousands of files
    known = manager.all_tasks
    if unknown := [name for name in tasks if name not in known]:
        near = own or [near for name in unknown for near in difflib.get_close_matches(name, known)]
        raise WorkbenchError(asked, found=f"no task {', '.join(unknown)}", allowed=", ".join(near) or "lm-eval's names",
                             do="Run `lm-eval ls tasks`, or write the task's YAML into folder=.")  # fmt: skip
    for entry in manager.task_index.values():
        if folder is not None and entry.yaml_path and entry.yaml_path.resolve().is_relative_to(folder):
            entry.cfg = _placed(load_yaml(entry.yaml_path), entry.yaml_path.parent, folder, cache)
            entry.yaml_path = None  # lm-eval would read it again
    try:
        return manager.load(tasks)
    except (OSError, ValueError, KeyError) as problem:  # a ConnectionError is an OSError
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        offline = isinstance(problem, OSError) or "offline" in str(problem).lower()
        raise WorkbenchError(asked, found=first[:300], allowed="tasks whose data is in folder= or in the cache",
                             do="Nothing is downloaded here: put the data there first (MMLU: write_mmlu)." if offline
                             else None) from problem  # fmt: skip


def _placed(config: Any, here: Path, folder: Path, cache: str) -> Any:
    """A task's settings with whole paths of its data files, which must lie in the folder; inline tasks too."""

    def whole(files: Any) -> Any:
        if isinstance(files, dict):
            return {split: whole(file) for split, file in files.items()}
        if isinstance(files, list):
            return [whole(file) for file in files]
        path = (here / files).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise WorkbenchError(f"The data file {files!r} of a task was to be read.", found="none there",
                                 allowed=f"a path relative to the task's YAML, inside {folder.name!r}")  # fmt: skip
        return str(path)

    if isinstance(config, list):
        return [_placed(part, here, folder, cache) for part in config]
    if not isinstance(config, dict):
        return config
    config = {name: _placed(part, here, folder, cache) if name == "task" else part for name, part in config.items()}
    given = config.get("dataset_kwargs") or {}
    if "data_files" in given:
        if config.get("dataset_path", "json") not in FILES:
            raise WorkbenchError(f"A task with data files of kind {config['dataset_path']!r} was to be read.",
                                 allowed=", ".join(FILES))  # fmt: skip
        config["dataset_kwargs"] = {**given, "data_files": whole(given["data_files"]), "cache_dir": cache}
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval offline and silent; environment, logging, progress bars and random numbers as they were afterwards."""
    import datasets
    import datasets.config
    import huggingface_hub

    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    states = random.getstate(), np.random.get_state()
    with (
        patch.dict(os.environ, offline),
        patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),  # both read the environment at import only
        patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        patch.object(lm_eval.api.task, "tqdm", lambda docs, **_: docs),
        torch.random.fork_rng(devices=[]),
    ):
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            datasets.disable_progress_bars()
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])
            torch.manual_seed(SEEDS["torch"])
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if not bars:
                datasets.enable_progress_bars()
            random.setstate(states[0])
            np.random.set_state(states[1])


def write_mmlu(
    folder: str | Path, items: str | Path | pd.DataFrame, name: str = "mmlu_local", shots: int = 5
) -> str:
    """Write multiple-choice items as tasks of lm-eval into a folder, and return the name to give to `run_tasks`.

    items: as for `load_choices`, MMLU's folder for one; subjects without dev items give their first `shots` away. One
    task per subject, NAME_SUBJECT, in MMLU's own prompt format with the dev items as first examples, and the group NAME
    whose acc counts all items alike. The files can be moved together, and read by lm-eval's own command from there.
    """
    folder, items = Path(folder).expanduser(), load_choices(items, shots)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for subject, own in items.groupby("subject", sort=False):
        counts = set(own["choices"].map(len))
        if len(counts) > 1:
            raise WorkbenchError(f"Items of {subject!r} were to be written as one task.", allowed="one number",
                                 found=f"{' and '.join(map(str, sorted(counts)))} choices")  # fmt: skip
        task = re.sub(r"\W+", "_", f"{name}_{subject}" if subject else name)
        letters, files = LETTERS[: counts.pop()], {split: f"{task}_{split}.jsonl" for split in set(own["split"])}
        for split, file in files.items():
            rows = own.loc[own["split"] == split, ["question", "choices", "answer"]].to_dict("records")
            (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        listed = "".join(f"\n{letter}. {{{{choices[{k}]}}}}" for k, letter in enumerate(letters))
        _write(folder / f"{task}.yaml", {
            "task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": dict(sorted(files.items()))},
            "test_split": "test", "output_type": "multiple_choice", "description": about(str(subject)),
            "doc_to_text": f"{{{{question.strip()}}}}{listed}\nAnswer:", "doc_to_choice": list(letters),
            "doc_to_target": "answer", "metadata": {"version": 1.0},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            **({"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}} if "dev" in files else {}),
        })  # fmt: skip
        names.append(task)
    if names != [name]:
        alike = [{"metric": "acc", "weight_by_size": True}]
        group = {"group": name, "task": names, "aggregate_metric_list": alike, "metadata": {"version": 1.0}}
        _write(folder / f"{name}.yaml", group)
    return name


def _write(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
