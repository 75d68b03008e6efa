"""What the studio needs of a model, fitted once and kept: probes, mean differences, a gate, neurons.

Fitting takes a minute on the embedded model, reading back a tenth of a second. The folder of what was kept is named by
the model (weights, template, libraries), the workbench's version and the data: when one of them changes, all is
fitted anew. Whoever comes first fits, under a lock; the others wait and read. Imports lie inside, so that the server,
which only asks whether a model `is_prepared`, does without torch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WorkbenchError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..gates import ProbeGate
    from ..models import Model
    from ..neurons import Neurons
    from ..probes import PairActivations, Probes

MANIFEST = "prepared.json"
"""Written last: a folder without it is not complete."""
Say = Callable[[str], Any]


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """A model and what was fitted on it. Made by `prepare`.

    probes: logistic, of all values at all layers; differences: the same by mean difference, whose weights CAA adds.
    gate: None where it could not be fitted. neurons: of the values that have any (`select_neurons`).
    notes: what was left out, and why something is missing. folder: where it is kept.
    """

    model: "Model"
    probes: "Probes"
    differences: "Probes"
    gate: "ProbeGate | None"
    neurons: "dict[str, Neurons]"
    notes: tuple[str, ...]
    folder: Path

    @property
    def layers(self) -> list[int] | None:
        """Where the studio steers: in the middle of the embedded models, where the next tokens still look; None for
        others leaves it to ConVA's rule.
        """
        return [self.model.n_layers // 2 - 1] if self.model.world else None

    def __repr__(self) -> str:
        gate = "a gate" if self.gate is not None else "no gate"
        return (f"Prepared({self.model.name}: probes of {len(self.probes.values)} values at {len(self.probes.layers)} "
                f"layers, {gate}, neurons of {len(self.neurons)} values)")  # fmt: skip


def prepare(name: str | Path = "embedded:circle", folder: str | Path | None = None, say: Say | None = None) -> Prepared:
    """Load a model and read what was fitted on it, or fit it now and keep it.

    name: as `load_model` takes it; embedded models are read with the embedded pairs, all others with the natural ones,
        as far as they fit the context. folder: where things are kept, None takes `cache_folder`. say: is told what is
        being fitted, and nothing where all is there.

    Raises WorkbenchError for a model that cannot be loaded or probed, and where nothing can be written.
    """
    from filelock import FileLock

    from ..checkpoints import find
    from ..models import load_model
    from ..prompts import data_hash, load_pairs, load_questions, load_unrelated

    model = load_model(name)
    data = "embedded" if model.world else "natural"
    tables = [load(data) for load in (load_pairs, load_questions, load_unrelated)]
    told = [json.dumps(model.provenance, sort_keys=True), version(), *map(data_hash, tables)]
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    parent = cache_folder() if folder is None else Path(folder)
    home = parent / digest
    if (found := _read(home, model)) is not None:
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{digest}.lock"):
            if (found := _read(home, model)) is not None:  # another one was first
                return found
            _fit(model, tables, home, stamp(find(name, None)[0]), say or (lambda _: None))
    except OSError as problem:
        raise WorkbenchError(
            f"What is fitted on {model.name} was to be kept.",
            found=f"{type(problem).__name__}: {problem.strerror}",
            allowed="a folder that can be written",
            do="Set WORKBENCH_CACHE to such a folder.",
        ) from None
    found = _read(home, model)
    assert found is not None
    return found


def cache_folder() -> Path:
    """Where prepared models are kept: in WORKBENCH_CACHE, else in the user's own cache."""
    root = os.environ.get("WORKBENCH_CACHE")
    if not root:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "value-workbench"
    return Path(root).expanduser() / "studio"


def is_prepared(name: str | Path, folder: str | Path | None = None) -> bool:
    """Whether this version has fitted on these very files before; in doubt False. Reads no weights."""
    from ..prompts import data_path

    text = str(name)
    try:
        embedded = text.startswith("embedded:")
        files = data_path("embedded", text.removeprefix("embedded:")) if embedded else Path(text).expanduser()
    except WorkbenchError:
        return False
    if not files.is_dir():
        return False
    sought = {"version": version(), "files": stamp(files)}
    manifests = (cache_folder() if folder is None else Path(folder)).glob(f"*/{MANIFEST}")
    return any(sought.items() <= manifest.items() for manifest in map(_manifest, manifests))


def stamp(folder: Path) -> list[list[Any]]:
    """Name, size and time of each file in a model's folder: who has the same has the same model."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def version() -> str:
    """The workbench's own."""
    from importlib.metadata import version

    return version("value-workbench")


# -- files -----------------------------------------------------------------------------------------------------------


def _manifest(path: Path) -> dict[str, Any]:
    """What a manifest says; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(home: Path, model: "Model") -> Prepared | None:
    """What is kept in a folder; None where it is not complete, or damaged."""
    from ..gates import ProbeGate
    from ..neurons import Neurons
    from ..probes import Probes

    manifest = _manifest(home / MANIFEST)
    if not manifest:
        return None
    try:
        probes, differences = (Probes.load(home / name, model) for name in ("probes", "differences"))
        gate = ProbeGate.load(home / "gate", model) if manifest["gate"] else None
        neurons = {value: Neurons.load(home / f"neurons-{value}", model) for value in manifest["neurons"]}
    except (WorkbenchError, KeyError):
        return None
    return Prepared(model, probes, differences, gate, neurons, tuple(manifest["notes"]), home)


# -- fitting ---------------------------------------------------------------------------------------------------------


def _fit(model: "Model", tables: "list[DataFrame]", home: Path, files: list[list[Any]], say: Say) -> None:
    """Fit everything and keep it in `home`."""
    from ..probes import PairActivations
    from ..prompts import that_fit

    for old in home.iterdir():  # of an attempt that was interrupted
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    notes: list[str] = []

    def fitting(table: "DataFrame", columns: list[str], what: str, chat: bool) -> "DataFrame":
        kept, left = that_fit(model, table, columns, chat)
        if len(left):
            notes.append(f"{len(left)} of {len(table)} {what} do not fit the context of {model.context} tokens and "
                         "are left out, uncut.")  # fmt: skip
        return kept

    pairs = fitting(tables[0], ["positive", "negative"], "pairs", chat=False)
    say(f"Activations of {len(pairs):,} pairs of texts ...")
    acts = PairActivations.capture(model, pairs)
    say(f"Probes of {len(acts.values)} values at {len(acts.layers)} layers ...")
    probes = acts.fit(C=1e-5 if model.world else 1.0)  # at 1 the embedded models' P is 0 or 1 and nothing between
    probes.save(home / "probes")
    acts.fit("mean_difference").save(home / "differences")
    say("The gate ...")
    questions, unrelated = (table[table["split"] == "calibration"] for table in tables[1:])
    gate = _gate(
        model,
        fitting(questions, ["question"], "questions", chat=True)["question"].tolist(),
        fitting(unrelated, ["prompt"], "prompts of the gate", chat=True),
        notes,
    )
    if gate is not None:
        gate.save(home / "gate")
    say("Neurons of each value ...")
    neurons = _neurons(model, acts, probes, notes)
    for value, chosen in neurons.items():
        chosen.save(home / f"neurons-{value}")
    manifest = {"version": version(), "model": model.name, "files": files, "gate": gate is not None,
                "neurons": list(neurons), "notes": notes}  # fmt: skip
    partial = home / f".{MANIFEST}"
    partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(partial, home / MANIFEST)


def _gate(model: "Model", questions: list[str], unrelated: "DataFrame", notes: list[str]) -> "ProbeGate | None":
    from ..gates import ProbeGate

    related = unrelated["related"].astype(bool)
    try:
        return ProbeGate.fit(model, [*questions, *unrelated["prompt"][related]], unrelated["prompt"][~related].tolist())
    except WorkbenchError as problem:
        notes.append(f"No gate: {problem.found or problem.asked}.")
        return None


def _neurons(model: "Model", acts: "PairActivations", probes: "Probes", notes: list[str]) -> "dict[str, Neurons]":
    from ..neurons import check_writes, neuron_contrasts, select_neurons

    try:
        check_writes(model, "Neurons that carry a probe's logit")  # before the capture, which takes long
        layers = probes.choose_layers(rule="cross-fitted")
        try:
            layers = probes.choose_layers()
        except WorkbenchError:
            notes.append(f"No layer reads the values well; neurons are those of layers {', '.join(map(str, layers))}.")
        contrasts = neuron_contrasts(model, acts.pairs, layers)
    except WorkbenchError as problem:
        notes.append(f"No neurons: {problem.found or problem.asked}.")
        return {}
    found: dict[str, Neurons] = {}
    without: dict[str, list[str]] = {}
    for value in probes.values:
        try:
            found[value] = select_neurons(model, contrasts, probes, value, layers)
        except WorkbenchError as problem:
            without.setdefault(problem.found or problem.asked, []).append(value)
    notes += [f"No neurons of {', '.join(values)}: {reason}." for reason, values in without.items()]
    return found
