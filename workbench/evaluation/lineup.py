"""The line-up: every method ready for one comparison, fitted from the same data and tuned by the same rule.

**What each is given.** Probes from the pairs; the gate and all strengths from calibration questions. Methods that are
tuned choose one setting per value by `tuning.tune`; ablations and controls *follow* the setting of their method, so
that nothing but the one thing differs.

**At equal CSR.** "X at NeVA" is X at the setting whose CSR on the calibration questions comes closest to that which
NeVA's own setting reached there: leakage is compared where control is equal, and chosen without the test questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..gates import Gate, ProbeGate
from ..generate import generate
from ..models import Model
from ..neurons import NONE, Neurons, activation_shares, neuron_contrasts, random_neurons, select_neurons
from ..probes import Probes, fit_probes
from ..prompts import load_pairs, load_questions, load_unrelated, that_fit
from ..steering import CAA, DPNLE, ICA, LAPE, NPTI, SCAV, Base, ConVA, Intervention, LoRA, NeVA, RandomDirection
from ..steering.lape import opposed_values
from ..values import VALUES
from .answers import Methods, default_temperature
from .tuning import Tuning, tune

TARGETS = (0.8, 0.85, 0.9, 0.94, 0.97)
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
GAMMAS = (0.5, 1.0, 2.0, 4.0)
HARD = ("hard", "word", "colour")  # value words meant innocently; in the embedded world also dilemmas without values
Setting = dict[str, Any]


class Entry(NamedTuple):
    """A method of the line-up. make(lineup, value, setting) -> intervention, or None where it cannot steer the value.
    settings(lineup): weakest first, one for methods that have no strength. follows: the method whose chosen setting it
    takes. about: what it is there for.
    """

    make: Callable[["Lineup", str, Setting], Intervention | None]
    settings: Callable[["Lineup"], list[Setting]] = lambda _: [{}]
    follows: str = ""
    about: str = ""


@dataclass(eq=False)
class Lineup:
    """What the methods are made of, fitted once and when first needed.

    data: "embedded", "natural" or a folder, for pairs, questions and unrelated prompts; "" takes "embedded" for
    embedded models. layers: candidates for methods that edit the residual stream, each a list; None takes
    `Probes.choose_layers`. neuron_layers: the same for neuron methods; None takes, one at a time, the two layers at
    which NeVA's neurons carry most of the probe. C: of the steering probes. gate: None fits a ProbeGate. calibration:
    questions per value to tune on. settings: method -> its settings, in place of those of `ENTRIES`.
    share: of neurons that NeVA may keep. room: tokens of the context that every prompt must leave for its answer.
    """

    model: Model
    data: str | Path = ""
    layers: Sequence[Sequence[int]] | None = None
    neuron_layers: Sequence[Sequence[int]] | None = None
    C: float = 1.0
    share: float = 0.005
    gate: Gate | None = None
    calibration: int | None = None
    settings: Mapping[str, Sequence[Setting]] = field(default_factory=dict)
    values: Sequence[str] = VALUES
    room: int = 24

    def __post_init__(self):
        self.data = self.data or ("embedded" if self.model.world else "natural")
        if self.gate is None:
            asked, other = self.questions, self.unrelated
            calm = other[(other["split"] == "calibration")]
            related = [*asked[asked["split"] == "calibration"]["question"], *calm[calm["related"]]["prompt"]]
            self.gate = ProbeGate.fit(self.model, related, calm[~calm["related"]]["prompt"].tolist())

    # -- data ------------------------------------------------------------------------------------------------

    def _fit(self, table: pd.DataFrame, *columns: str, **room: Any) -> pd.DataFrame:
        """Rows whose texts fit the model's context."""
        return that_fit(self.model, table, columns, **room)[0]

    @cached_property
    def pairs(self) -> pd.DataFrame:
        return self._fit(load_pairs(self.data), "positive", "negative")

    @cached_property
    def loose_pairs(self) -> pd.DataFrame:
        """Pairs without control: of the embedded world the trap, which affirms and denies the same behaviour; of the
        natural set, or of a folder, those that name their value.
        """
        if self.data == "embedded":
            loose = load_pairs("embedded", pairs="polarity")
        else:
            natural = self.data == "natural"
            loose = load_pairs("natural-uncontrolled" if natural else Path(self.data) / "uncontrolled.csv")
        return self._fit(loose, "positive", "negative")

    @cached_property
    def questions(self) -> pd.DataFrame:
        table = self._fit(load_questions(self.data), "question", chat=True, room=self.room)
        return table[table["value"].isin(list(self.values))]

    @cached_property
    def unrelated(self) -> pd.DataFrame:
        return self._fit(load_unrelated(self.data), "prompt", chat=True, room=self.room)

    def other_prompts(self, hard: bool, most: int) -> pd.DataFrame | None:
        """At most so many unrelated test prompts, spread over their kinds, or hard ones; None where there are none."""
        table = self.unrelated[(self.unrelated["split"] == "test") & ~self.unrelated["related"]]
        table = table[table["kind"].isin(HARD)] if hard else table[table["kind"] != "hard"]
        turn = table.groupby("kind").cumcount().sort_values(kind="stable")
        table = table.loc[turn.index[:most]]
        return table if len(table) else None

    # -- fits ------------------------------------------------------------------------------------------------

    @cached_property
    def probes(self) -> Probes:
        return fit_probes(self.model, self.pairs, C=self.C)

    @cached_property
    def loose_probes(self) -> Probes:
        return fit_probes(self.model, self.loose_pairs, C=self.C)

    @cached_property
    def differences(self) -> Probes:
        return fit_probes(self.model, self.pairs, method="mean_difference")

    @cached_property
    def contrasts(self) -> xr.Dataset:
        return neuron_contrasts(self.model, self.pairs)

    @cached_property
    def neurons(self) -> dict[str, Neurons]:
        """NeVA's neurons of every value for which there are any: a rule may find none."""
        at = None if self.neuron_layers is None else sorted({layer for own in self.neuron_layers for layer in own})
        found = {value: _or_none(select_neurons, self.model, self.contrasts, self.probes, value, at, self.share)
                 for value in self.values}  # fmt: skip
        return {value: own for value, own in found.items() if own is not None}

    @cached_property
    def shares(self) -> dict[tuple[str, str], xr.Dataset]:
        """(value, "high" | "low") -> how often neurons are on while the model answers calibration questions so told;
        values without a question that fits the context behind both instructions are left out.
        """
        asked = self.questions[self.questions["split"] == "calibration"]
        found = {}
        for value in self.values:
            own = asked.loc[asked["value"] == value, "question"]
            for level in ("high", "low"):
                told = pd.DataFrame({"question": self.model.instruct(value, level) + " " + own})
                prompts = self._fit(told, "question", chat=True, room=self.room)["question"].tolist()
                said = generate(self.model, prompts, temperature=default_temperature(self.model), max_new_tokens=24)
                if any(said):
                    found[value, level] = activation_shares(self.model, prompts, said)
        return {key: shares for key, shares in found.items() if {(key[0], "high"), (key[0], "low")} <= {*found}}

    def residual_layers(self) -> list[list[int]]:
        return [list(layers) for layers in self.layers or [self.probes.choose_layers()]]

    def neuron_places(self) -> list[list[int]]:
        if self.neuron_layers is not None:
            return [list(layers) for layers in self.neuron_layers]
        shares = {name: own.share.to_series() for name, own in self.neurons.items() if own.share is not None}
        carried = pd.DataFrame(shares).mean(axis=1)
        return [[int(layer)] for layer in carried.sort_values(ascending=False, kind="stable").index[:2]]

    # -- methods ---------------------------------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        base, _, other = name.partition(" at ")
        if name in ENTRIES:
            return ENTRIES[name]
        if other in ENTRIES and base in ENTRIES:
            return ENTRIES[base]._replace(about=f"{base} tuned to the CSR that {other} reaches")
        raise WorkbenchError(f"The method {name!r} was to be evaluated.",
                             allowed=f"{', '.join(ENTRIES)}; 'X at Y' for X at Y's CSR")  # fmt: skip

    def choices(self, name: str) -> list[Setting]:
        """Settings of a method, weakest first."""
        return list(self.settings.get(name) or self.entry(name).settings(self))

    def family(self, name: str) -> Callable[[str, Setting], Intervention | None]:
        return partial(self.entry(name).make, self)

    def tune(self, names: Sequence[str], record: str | Path | None = None, **options: Any) -> dict[str, Tuning]:
        """Each method's settings, value by value, and their curves; see `tuning.tune`. record: a folder."""
        needed = dict.fromkeys(part for name in names for part in (*name.split(" at "), self.entry(name).follows))
        found: dict[str, Tuning] = {}
        for name in needed:
            if name in ENTRIES and not ENTRIES[name].follows and len(self.choices(name)) > 1:
                path = None if record is None else Path(record) / f"{name}.jsonl"
                found[name] = tune(self.model, self.family(name), self.choices(name), self.questions,
                                   limit=self.calibration, record=path, **options)  # fmt: skip
        return found

    def methods(self, names: Sequence[str], tunings: Mapping[str, Tuning]) -> Methods:
        """Name -> value -> intervention, each at its chosen setting."""
        for name in names:
            self.entry(name)  # an unknown name is told before anything is fitted
        return {name: partial(self._made, name, tunings) for name in names}

    def _made(self, name: str, tunings: Mapping[str, Tuning], value: str) -> Intervention | None:
        base, _, other = name.partition(" at ")
        entry = self.entry(name)
        if other and name not in ENTRIES:
            if any(value not in tunings[part].chosen for part in (base, other)):
                return None
            return entry.make(self, value, matched(tunings[base], tunings[other], value, self.choices(base)))
        source = entry.follows or name
        if source in tunings and value not in tunings[source].chosen:
            return None
        return entry.make(self, value, tunings[source].chosen[value] if source in tunings else self.choices(source)[0])


def matched(tuning: Tuning, other: Tuning, value: str, settings: Sequence[Setting]) -> Setting:
    """The setting whose CSR on calibration questions is closest to what `other` chose; of equals the weakest."""
    goal = other.curve.query("value == @value and chosen")["csr"].iloc[0]
    own = tuning.curve[(tuning.curve["value"] == value) & (tuning.curve["setting"] != "Base")]
    told = own.iloc[np.argsort((own["csr"] - goal).abs().to_numpy(), kind="stable")]["setting"].iloc[0]
    return next(setting for setting in settings if repr(setting) == told)


def _or_none(select: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a rule selects; None where it finds no neuron."""
    try:
        return select(*given, **options)
    except WorkbenchError as problem:
        if problem.found != NONE:
            raise
        return None


def _grid(name: str, numbers: Sequence[float], places: Callable[[Lineup], list[list[int]]]) -> Callable[..., Any]:
    return lambda lineup: [{"layers": layers, name: x} for x in numbers for layers in places(lineup)]


_targets = _grid("target", TARGETS, Lineup.residual_layers)
_strengths = _grid("strength", STRENGTHS, Lineup.residual_layers)


def _caa(lineup: Lineup, value: str, setting: Setting) -> Intervention:
    return CAA(lineup.differences, value, gate=lineup.gate, **setting)


def _conva(lineup: Lineup, value: str, setting: Setting, **other: Any) -> Intervention:
    return ConVA(lineup.probes, value, **{"gate": lineup.gate, **setting, **other})


def _neva(lineup: Lineup, value: str, setting: Setting) -> Intervention | None:
    if value not in lineup.neurons:
        return None
    return NeVA(lineup.probes, value, lineup.neurons[value], gate=lineup.gate, **{"scope": "all", **setting})


def _random_neurons(lineup: Lineup, value: str, setting: Setting) -> Intervention | None:
    neva = _neva(lineup, value, setting)
    return neva and replace(neva, neurons=random_neurons(lineup.model, lineup.neurons[value]))  # type: ignore[type-var]


def _npti(lineup: Lineup, value: str, setting: Setting) -> Intervention | None:
    if (value, "high") not in lineup.shares:
        return None
    chosen = _or_none(NPTI.select, lineup.model, value, lineup.shares[value, "high"], lineup.shares[value, "low"])
    return chosen and NPTI(chosen, gate=lineup.gate, **setting)


def _lape(lineup: Lineup, value: str, setting: Setting) -> Intervention | None:
    shares = {name: own for (name, level), own in lineup.shares.items() if level == "high"}
    if value not in shares or not {*opposed_values(value)} & {*shares}:
        return None
    chosen = _or_none(LAPE.select, lineup.model, value, shares)
    return chosen and LAPE(chosen, gate=lineup.gate, **setting)


def _dpnle(lineup: Lineup, value: str, setting: Setting) -> Intervention | None:
    select = {name: setting[name] for name in ("layers", "quantile") if name in setting}
    chosen = _or_none(DPNLE.select, lineup.model, lineup.contrasts, value, **select)
    return chosen and DPNLE(chosen, gate=lineup.gate, gamma=setting["gamma"])


def _lora(lineup: Lineup, value: str, setting: Setting) -> Intervention:
    asked = lineup.questions[(lineup.questions["split"] == "calibration") & (lineup.questions["value"] == value)]
    return LoRA.fit(lineup.model, value, asked["question"].tolist(), gate=lineup.gate, **setting)


ENTRIES: dict[str, Entry] = {
    "Base": Entry(lambda lineup, value, setting: Base(), about="the model as it is"),
    "ICA": Entry(lambda lineup, value, setting: ICA(value), about="asked in the prompt"),
    "CAA": Entry(_caa, _strengths, about="mean difference, gated"),
    "SCAV": Entry(lambda lineup, value, s: SCAV(lineup.probes, value, gate=lineup.gate, **s), _targets,
                  about="ConVA's closed form at the last token, gated"),
    "ConVA": Entry(_conva, _targets, about="one shift per prompt, at every token, gated"),
    "ConVA, per token": Entry(partial(_conva, scope="token"), _targets, about="the shift computed anew at each token"),
    "ConVA, no gate": Entry(partial(_conva, gate=None), follows="ConVA", about="ablation: everyone is steered"),
    "ConVA, no control": Entry(lambda lineup, value, s: ConVA(lineup.loose_probes, value, gate=lineup.gate, **s),
                               _targets, about="ablation: probes from pairs without control"),
    "random direction": Entry(lambda lineup, value, s: RandomDirection(_conva(lineup, value, s)), follows="ConVA",
                              about="control: as long as ConVA's shift, anywhere"),
    "NeVA": Entry(_neva, _grid("target", TARGETS, Lineup.neuron_places),
                  about="sparse neurons, by the workbench's own definition"),
    "random neurons": Entry(_random_neurons, follows="NeVA", about="control: as many neurons, drawn at random"),
    "NPTI": Entry(_npti, lambda lineup: [{"gamma": gamma} for gamma in GAMMAS], about="neurons on under high prompts"),
    "LAPE": Entry(_lape, about="the opposed group's neurons off"),
    "DPN-LE": Entry(_dpnle, lambda lineup: [{"gamma": gamma} for gamma in GAMMAS], about="mean differences of neurons"),
    "LoRA": Entry(_lora, about="trained on the model's own answers to the instruction"),
}  # fmt: skip
