"""State of the neuron explorer: how neurons are chosen, which ones were, and what is known of the one looked at.

All is found piece by piece (`step`), the most urgent first, and kept, as in the geometry's state. No widgets.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import traitlets as t
import xarray as xr

from ...errors import WorkbenchError
from ...models import Model
from ...neurons import Neurons, check_writes, select_neurons
from ...probes import Probes
from ...probes.files import check_fingerprint
from ...values import check_value
from .reading import Reading
from .scaling import SETTINGS as SCALING
from .scaling import ScalingState

SETTINGS = ("value", "share", "min_d", "selective", "picked")
TOKENS = 8  # tokens that a neuron raises most, and that it lowers most
HELD = 2  # selections that are kept


class Rule(NamedTuple):
    """How neurons are selected, see `select_neurons`."""

    share: float
    min_d: float
    selective: bool


class Selection:
    """What one rule chose: sets by value, why there is none, and overlaps once all are there."""

    def __init__(self) -> None:
        self.sets: dict[str, Neurons] = {}
        self.refused: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.done: set[str] = set()  # values whose overlaps with those after them are there
        self.overlaps: pd.DataFrame | None = None


class NeuronState(t.HasTraits):
    """Sets of neurons, one for each value, and one of them under the glass.

    Settings: value, whose set is shown; share, min_d, selective, as in `select_neurons` (unused where sets were given);
    picked, the neuron looked at, (layer, neuron), () for none: the strongest is picked where another set is shown.
    `edit` holds the settings of "ablate or amplify" (`ScalingState`).

    Found by `step`: contrasts, as `neuron_contrasts` finds them; `neurons`, the value's set; `overlaps` of all sets;
    what `tokens` and `texts` tell of the neuron. progress: of reading the pairs, "" for none. found: grows with each
    set that is there. norm_follows: why in this model W_out is not what neurons add, "" where it is; then none can be
    selected.
    """

    value = t.Unicode()
    share = t.Float(0.005)
    min_d = t.Float(0.8)
    selective = t.Bool(True)
    picked: Any = t.Tuple()

    progress = t.Unicode("")
    found = t.Int(0)

    def __init__(
        self, model: Model, probes: Probes, pairs: pd.DataFrame | xr.Dataset | None = None,
        sets: Mapping[str, Neurons] | None = None, layers: Iterable[int] | None = None, **settings: Any,
    ):  # fmt: skip
        """As `neuron_explorer` takes them."""
        if unknown := [name for name in settings if name not in (*SETTINGS, *SCALING)]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.",
                                 allowed=", ".join((*SETTINGS, *SCALING)))  # fmt: skip
        probes.check(model)
        self.model, self.probes, self.given = model, probes, dict(sets) if sets else None
        self.layers = probes.layers if layers is None else model.check_layers(layers)
        if missing := [layer for layer in self.layers if layer not in probes.layers]:
            raise WorkbenchError(f"Neurons at layers {self.layers} were asked for.", found=f"no probes at {missing}",
                                 allowed=f"layers {', '.join(map(str, probes.layers))}")  # fmt: skip
        self.contrasts: xr.Dataset | None = None
        self.pairs: pd.DataFrame | None = pairs if isinstance(pairs, pd.DataFrame) else None
        if isinstance(pairs, xr.Dataset):
            check_fingerprint("Contrasts of neurons", pairs.attrs, model)
            self.contrasts, self.layers = pairs, [k for k in self.layers if k in pairs["layer"].values]
        if self.pairs is None and probes.activations is not None:
            self.pairs = probes.activations.pairs
        if self.given:
            for own in self.given.values():
                own.check(model)
            self.layers = sorted({layer for own in self.given.values() for layer in own.layers})
        elif self.pairs is None and self.contrasts is None:
            raise WorkbenchError("Neurons were to be explored.", found="neither pairs of texts nor sets of neurons",
                                 do="Pass pairs=load_pairs(...), or their neuron_contrasts, or sets=.")  # fmt: skip
        self._reading: Reading | None = None
        self._steps: Generator[float, None, None] | None = None
        self._kept: OrderedDict[Rule, Selection] = OrderedDict()
        self._tokens: dict[tuple[int, int], pd.DataFrame] = {}
        if not self.values:
            raise WorkbenchError("Neurons were to be explored.", found="no value with pairs of texts and a probe",
                                 allowed=f"pairs of {', '.join(probes.values)}")  # fmt: skip
        self.norm_follows = ""
        try:
            check_writes(model, "Neurons that carry a probe's logit")
        except WorkbenchError as problem:
            self.norm_follows = str(problem)
        own = {name: settings.pop(name) for name in SCALING if name in settings}
        self._wanted = tuple(settings.pop("picked", ()))
        super().__init__(**{"value": self.values[0], "share": 0.02 if model.world else 0.005, **settings})
        self.edit = ScalingState(model, self._chosen, self.value, **own)
        self.pick()

    # -- settings ------------------------------------------------------------------------------------------------------

    @property
    def values(self) -> list[str]:
        """Values that have, or can have, a set."""
        if self.given:
            return list(self.given)
        known = self.pairs["value"].unique() if self.contrasts is None and self.pairs is not None else (
            self.contrasts["value"].values if self.contrasts is not None else ())  # fmt: skip
        return [value for value in self.probes.values if value in known]

    @t.validate("value")
    def _check_value(self, proposal: Any) -> str:
        return check_value(proposal["value"], self.values)

    @t.validate("share", "min_d")
    def _check_number(self, proposal: Any) -> float:
        name, number = proposal["trait"].name, proposal["value"]
        if not (0 < number <= 1 if name == "share" else 0 <= number < np.inf):
            raise WorkbenchError(f"A {name.replace('_', ' ')} of {number} was asked for.",
                                 allowed="above 0 and up to 1" if name == "share" else "0 or more")  # fmt: skip
        return number

    @t.validate("picked")
    def _check_picked(self, proposal: Any) -> tuple[int, ...]:
        picked = tuple(int(k) for k in proposal["value"])
        if picked and self.neurons is not None and self._row(picked) is None:
            raise WorkbenchError(f"The neuron {picked} was asked for.", found="none of the set that is shown",
                                 allowed="(layer, neuron) of a chosen one")  # fmt: skip
        return picked

    @property
    def rule(self) -> Rule | None:
        """How neurons are selected; None where the sets were given."""
        return None if self.given else Rule(self.share, self.min_d, self.selective)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand, without those of `edit`."""
        return {name: getattr(self, name) for name in SETTINGS}

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection:
        """What the rule chose so far."""
        rule = self.rule or Rule(0, 0, False)
        if rule not in self._kept:
            self._kept[rule] = Selection()
            if self.given:
                self._kept[rule].sets = self.given
        self._kept.move_to_end(rule)
        while len(self._kept) > HELD:
            self._kept.popitem(last=False)
        return self._kept[rule]

    @property
    def neurons(self) -> Neurons | None:
        """The value's set; None as long as it is not found, or where none fits (`refusal`)."""
        return self.selection.sets.get(self.value)

    @property
    def refusal(self) -> str:
        """Why the value has no set, "" where it has one or it is not known yet."""
        return "" if self.given else self.norm_follows or self.selection.refused.get(self.value, "")

    @property
    def overlaps(self) -> pd.DataFrame | None:
        """`overlaps` of all sets; None as long as it is not found."""
        return self.selection.overlaps

    @property
    def tried(self) -> bool:
        """Was a set found, or refused, for every value, and how they overlap?"""
        held = self.selection
        known = all(value in held.sets or value in held.refused for value in self.values)
        return bool(self.refusal and self.norm_follows) or known and (len(held.sets) < 2 or held.overlaps is not None)

    @property
    def row(self) -> pd.Series | None:
        """The picked neuron's numbers, as `Neurons.table` has them."""
        return self._row(self.picked) if self.picked and self.neurons is not None else None

    def _row(self, picked: tuple[int, ...]) -> pd.Series | None:
        assert self.neurons is not None
        table = self.neurons.table()
        own = table[(table["layer"] == picked[0]) & (table["neuron"] == picked[1])] if len(picked) == 2 else table[:0]
        return None if own.empty else own.iloc[0]

    @property
    def responses(self) -> pd.Series | None:
        """Cohen's d of the picked neuron on the pairs of each value; None without contrasts."""
        if self.contrasts is None or not self.picked or self.picked[0] not in self.contrasts["layer"].values:
            return None
        return self.contrasts["d"].sel(layer=self.picked[0]).isel(neuron=self.picked[1]).to_series()

    @property
    def largest(self) -> tuple[float, int, int] | None:
        """Largest |d| that any neuron of these layers has on the value's pairs, its layer and index."""
        if self.contrasts is None or self.value not in self.contrasts["value"].values:
            return None
        d = np.abs(self.contrasts["d"].sel(value=self.value, layer=self.layers).values)
        layer, neuron = np.unravel_index(int(d.argmax()), d.shape)
        return float(d.max()), self.layers[int(layer)], int(neuron)

    @property
    def tokens(self) -> pd.DataFrame | None:
        """Tokens that the picked neuron raises and lowers most, (token, effect), the highest first; None if not found.

        effect: W_out,i . the token's row of the unembedding, logits per unit of activation on the direct way. The final
        norm's scale and gain are left out, so tokens compare and sizes do not.
        """
        return self._tokens.get(self.picked)

    @property
    def texts(self) -> pd.DataFrame | None:
        """Texts of the pairs with the highest and lowest activation of the picked neuron; None as long as not read."""
        held = self._reading
        if held is None or not held.complete or not self.picked or self.picked[0] not in held.layers:
            return None
        return held.table(*self.picked)

    def _chosen(self, target: str) -> Neurons | None:
        neurons = self.neurons
        if neurons is None or target == "set":
            return neurons
        own = (neurons.chosen[["layer", "neuron"]] == list(self.picked or (-1, -1))).all(axis=1).to_numpy()
        if not own.any():
            return None
        return replace(neurons, chosen=neurons.chosen[own].reset_index(drop=True), writes=neurons.writes[own],
                       rule=f"one of {neurons.rule}", share=None)  # fmt: skip

    # -- finding -------------------------------------------------------------------------------------------------------

    def step(self, ahead: bool = True) -> bool:
        """Find the most urgent piece that is missing; False where none is.

        In turn: the pairs' contrasts, the value's set, the tokens of the picked neuron; `ahead`: the other values'
        sets, overlaps, and texts.
        """
        if self.norm_follows and not self.given:
            return False
        if not self.given and self._find_contrasts():
            return True
        if self._find_set(self.value) or self._find_tokens():
            return True
        return ahead and (any(map(self._find_set, self.values)) or self._find_overlaps() or self._find_contrasts()
                          or self._find_texts())  # fmt: skip

    def complete(self) -> "NeuronState":
        """Find all that the settings ask for."""
        while self.step():
            pass
        return self

    def _find_contrasts(self) -> bool:
        return self.contrasts is None and self.pairs is not None and self._read(contrasts=True)

    def _find_texts(self) -> bool:
        if self.pairs is None or self._reading is not None and self._reading.complete and self._steps is None:
            return False
        return self._read(contrasts=False)

    def _read(self, contrasts: bool) -> bool:
        """Read some more of the texts."""
        assert self.pairs is not None
        if self._reading is None or self._steps is None:
            self._reading = Reading(self.model, self.pairs, self.layers, contrasts)
            self._steps = self._reading.steps()
        try:
            self.progress = f"{next(self._steps):.0%} of {len(self._reading.texts):,} texts read"
        except StopIteration:
            self._steps, self.progress = None, ""
            self.contrasts = self._reading.contrasts if contrasts else self.contrasts
            self.found += 1
        except Exception:
            self._steps, self._reading, self.progress = None, None, ""
            raise
        return True

    def _find_set(self, value: str) -> bool:
        selection = self.selection
        if value in selection.sets or value in selection.refused or self.given:
            return False
        assert self.contrasts is not None and self.rule is not None
        try:
            selection.sets[value] = select_neurons(self.model, self.contrasts, self.probes, value, self.layers,
                                                   **self.rule._asdict())  # fmt: skip
        except WorkbenchError as problem:
            selection.refused[value] = str(problem)
        if value == self.value:
            self.pick()
            self.found += 1
        return True

    @t.observe(*SETTINGS[:-1])
    def _another_set(self, _: Any) -> None:
        self.pick()

    def pick(self) -> None:
        """Look at the set's strongest neuron, where the one looked at is not in it."""
        if self.neurons is None:
            self.picked = () if self.refusal else self.picked
            return
        if self._wanted and self._row(self._wanted) is not None:
            self.picked = self._wanted
        self._wanted = ()
        if not self.picked or self._row(self.picked) is None:
            first = self.neurons.table().iloc[0]
            self.picked = (int(first["layer"]), int(first["neuron"]))

    def _find_overlaps(self) -> bool:
        selection = self.selection
        if selection.overlaps is not None or len(selection.sets) < 2:
            return False
        names = [value for value in self.values if value in selection.sets]
        for k, value in enumerate(names):
            if value not in selection.done:
                own = selection.sets[value]
                selection.rows += [{"value": value, "other": other, **own.overlap(selection.sets[other])}
                                   for other in names[k + 1 :]]  # fmt: skip
                selection.done.add(value)
                return True
        selection.overlaps = pd.DataFrame(selection.rows)
        self.found += 1
        return True

    @torch.no_grad()
    def _find_tokens(self) -> bool:
        neuron = None if self.norm_follows or self.picked in self._tokens else self._chosen("neuron")
        if neuron is None:
            return False
        weight: Any = self.model.twin.get_output_embeddings().weight
        effect = (weight @ torch.from_numpy(neuron.writes[0]).to(weight)).float()
        order = effect.argsort(descending=True)
        ends = torch.cat([order[:TOKENS], order[-TOKENS:]]) if len(order) > 2 * TOKENS else order
        self._tokens[self.picked] = pd.DataFrame({
            "token": [self.model.tokenizer.decode([int(k)]) for k in ends], "effect": effect[ends].tolist(),
        })  # fmt: skip
        return True
