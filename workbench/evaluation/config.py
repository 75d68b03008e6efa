"""An evaluation from a file: `workbench evaluate CONFIG.toml`.

    model = "embedded:circle"        # a Hugging Face name, or a folder
    store = "runs/circle"            # keeps every answer; the same command goes on after a kill
    methods = ["Base", "ICA", "CAA", "ConVA", "ConVA, no gate", "NeVA", "CAA at NeVA"]
    layers = [[12, 13, 14]]          # candidates for residual methods; left out: by probe accuracy
    negative = true

Every key is a field of `Config`; there is no other. Paths are read from where the file lies.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import WorkbenchError
from ..models import load_model
from ..prompts import load_negative_prompts
from ..values import VALUES, check_value
from .judges import Judge
from .lineup import ENTRIES, Lineup
from .results import Evaluation
from .study import study

STANDARD = ("Base", "ICA", "CAA", "SCAV", "ConVA", "ConVA, per token", "ConVA, no gate", "ConVA, no control",
            "random direction")  # fmt: skip


@dataclass
class Config:
    """Keys of the file, with what they are where it leaves them out.

    model: as `load_model` takes it; model_options: further arguments of it, such as dtype, device, revision. data:
    "embedded", "natural" or a folder; left out, what fits the model. methods: of `lineup.ENTRIES`, and "X at Y" for X
    at the CSR that Y reaches. values: steered. layers, neuron_layers, C, share, room, settings: as for `Lineup`, whose
    settings [settings.NAME] replaces; calibration: questions per value to tune on (0: all). limit: test questions per
    value (0: all). temperature, seeds, negative ("natural": the prompts of that set), pooled, judged_values, fluency,
    max_new_tokens, kl, batch_size, engine, workers, address: as for `study`. unrelated, hard: whether those prompts are
    asked, and at most how many (0: none). rounds: of halving when tuning. judge: table with by = "exact", "none", "llm"
    (then options of `LLMJudge`: endpoint, model, ...) or "local" (then options of `LocalJudge`: model, kind, ...).
    report: where the page goes; left out, report.html in the store.
    """

    model: str
    store: str
    model_options: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    methods: Sequence[str] = STANDARD
    values: Sequence[str] = VALUES
    layers: Sequence[Sequence[int]] | None = None
    neuron_layers: Sequence[Sequence[int]] | None = None
    C: float = 1.0
    share: float = 0.005
    room: int = 24
    settings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    calibration: int = 0
    rounds: int = 1
    limit: int = 0
    temperature: float | Sequence[float] | None = None
    seeds: Sequence[int] = (0, 1)
    negative: bool | str = True
    pooled: int = 0
    unrelated: int = 100
    hard: int = 100
    judge: dict[str, Any] = field(default_factory=dict)
    judged_values: str = "all"
    fluency: bool = False
    max_new_tokens: int = 64
    kl: bool = False
    batch_size: int = 32
    engine: str = "local"
    workers: int = 2
    address: str | None = None
    report: str | None = None
    home: Path = Path()
    """Folder that paths are read from; not a key."""


def read_config(path: str | Path) -> Config:
    """WorkbenchError for a file that is no TOML, for unknown or missing keys, methods and values."""
    path = Path(path)
    asked = f"An evaluation was to be read from {path.name!r}."
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise WorkbenchError(asked, found=str(problem)) from None
    known = [own.name for own in fields(Config) if own.name != "home"]
    if unknown := [key for key in given if key not in known]:
        close = get_close_matches(unknown[0], known, 1)
        raise WorkbenchError(asked, found=f"unknown keys {', '.join(unknown)}", allowed=", ".join(known),
                             do=f"Did you mean {close[0]}?" if close else None)  # fmt: skip
    if missing := [key for key in ("model", "store") if not isinstance(given.get(key), str)]:
        raise WorkbenchError(asked, found=f"no {' and no '.join(missing)}", allowed="a text for each")
    config = Config(**given, home=path.parent)
    for name in (*config.methods, *config.settings):
        if name not in ENTRIES and not all(part in ENTRIES for part in name.split(" at ")):
            raise WorkbenchError(asked, found=f"the method {name!r}",
                                 allowed=f"{', '.join(ENTRIES)}; 'X at Y' for X at Y's CSR")  # fmt: skip
    for value in config.values:
        check_value(value)
    return config


def read_judge(table: dict[str, Any], folder: Path, home: Path) -> Judge | None:
    """The judge that a config names; an LLM's replies are kept in the store, and read again without network."""
    options = dict(table)
    by = options.pop("by", "exact")
    try:
        return _judge(by, options, folder, home)
    except TypeError as problem:
        raise WorkbenchError(f"The judge {by!r} was asked for.", found=str(problem)) from None


def _judge(by: str, options: dict[str, Any], folder: Path, home: Path) -> Judge | None:
    if by == "llm":
        from .llm_judge import LLMJudge

        return LLMJudge(**{"cache": folder / "judge.jsonl", **options})
    if by == "local":
        from .local_judge import LocalJudge

        path = home / str(options.get("model", ""))
        return LocalJudge(**{**options, "model": path if path.is_dir() else options.get("model", "")})
    if by not in ("exact", "none"):
        raise WorkbenchError(f"The judge {by!r} was asked for.", allowed="'exact', 'none', 'llm', 'local'")
    return None  # `study` takes the exact judge for embedded models


def run_config(config: Config, progress: bool = True) -> Evaluation:
    """Fit, tune on calibration questions, evaluate on test questions, keep, and write the report."""
    folder = config.home / config.store
    local = config.home / config.model
    model = load_model(str(local) if local.is_dir() else config.model, **config.model_options)
    judge = read_judge(config.judge, folder, config.home)
    lineup = Lineup(model, config.data, config.layers, config.neuron_layers, config.C, config.share,
                    calibration=config.calibration or None, settings=config.settings, values=config.values,
                    room=config.room)  # fmt: skip
    methods = lineup.methods(config.methods, tunings := {})
    decoding = {name: getattr(config, name) for name in ("max_new_tokens", "batch_size")}
    unrelated, hard = lineup.other_prompts(False, config.unrelated), lineup.other_prompts(True, config.hard)
    if judge is not None or model.world:
        main = config.temperature[0] if isinstance(config.temperature, Sequence) else config.temperature
        told = {} if main is None else {"temperature": main}
        tunings.update(lineup.tune(
            config.methods, folder / "tuning", judge=judge, rounds=config.rounds, progress=progress,
            unrelated=lineup.unrelated if model.world else None, **decoding, **told,
        ))  # fmt: skip
    negative = load_negative_prompts(config.negative) if isinstance(config.negative, str) else config.negative
    result = study(
        model, methods, lineup.questions, judge, limit=config.limit or None, negative=negative, pooled=config.pooled,
        unrelated=unrelated, hard=hard, temperature=config.temperature, seeds=config.seeds, store=folder,
        tuning=tunings, judged_values=config.judged_values, fluency=config.fluency, engine=config.engine,
        workers=config.workers, address=config.address, progress=progress, kl=config.kl, **decoding,
    )  # fmt: skip
    result.report(config.home / config.report if config.report else folder / "report.html")
    return result
