"""MLP neurons: which of them carry a value, how much of its probe, and whether a model lets them be edited exactly.

**A neuron** is coordinate i of the MLP's hidden activation a, the input of the down projection: what TransformerLens
calls `blocks.l.mlp.hook_post`. In gated MLPs (Llama, Gemma) that is act(gate) * up, so that its sign is not the gate's
alone. With W_out,i the row by which it writes to the residual stream and w_(V,l) the probe of value V at layer l,

    c_i = W_out,i . w_(V,l)                                      effect on V's logit at layer l per unit of a_i
    s_i = c_i (mean a_i on positives - mean a_i on negatives)    its contrast: what it adds to the logit's difference

The s_i of a whole layer sum to what its MLP adds to the mean logit difference of V's pairs.

**Selection** (`select_neurons`) is the workbench's definition of NeVA's neurons (arXiv 2602.07356, whose formulas are
not public to us): of all neurons of the chosen layers the `share` of largest s_i, among those with |Cohen's d| of a_i
at least `min_d`, s_i > 0, and s_i larger than the same neuron's contrast for every value outside V's higher-order
groups, each by its own probe and pairs. The other rules, NPTI, LAPE and DPN-LE, stand with their methods in
`steering`; each gives a set of the same kind (`Neurons`).

**Misleads.** c_i counts the way through this layer's residual stream only. A probe may read at a layer what earlier
layers wrote and attention carried there: then its MLP has little part in it, which `Neurons.share` tells. Where a norm
follows the MLP (Gemma 2 and 3, OLMo 2) the neurons' effect is not W_out a, and rules that need it refuse
(`check_writes`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import hypergeom
from torch import nn

from .activations import capture
from .checkpoints import TOLERANCE
from .errors import WorkbenchError
from .gates import unsteered
from .models import Model
from .probes import Probes
from .probes.files import check_fingerprint, load_arrays, save_arrays
from .probes.folds import check_pairs, in_order, pairs_hash
from .probes.pairs import distinct_texts
from .values import VALUES, groups_of

HELD = 2**30  # bytes of activations held at once; beyond it layers are captured in turns
NEVA = "NeVA, the workbench's definition"
NONE = "none that fits the rule"
"""What an error says that it found where a rule chooses no neuron at all."""


@dataclass(frozen=True, eq=False, repr=False)
class Neurons:
    """Some neurons of a model, chosen for a value by a rule; never changed.

    chosen: one row per neuron, by layer and index: layer, neuron, and the numbers of the rule (here s, c, difference,
        d; NPTI and LAPE have `side`, 1 for the value's own and -1 for the opposite pole's).
    writes (row, d_model): W_out,i of each, float32.
    layers: those that were chosen from; width: neurons in each.
    share (layer): of the probe's mean logit difference on the pairs, what the set carries: sum of s over w . (mean e+ -
        mean e-); above 1 where other parts of the model work against it. None for rules without a probe.
    """

    value: str
    rule: str
    chosen: pd.DataFrame
    writes: np.ndarray
    layers: tuple[int, ...]
    width: int
    share: xr.DataArray | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Model, value: str, rule: str, chosen: pd.DataFrame, layers: Iterable[int], width: int,
        share: xr.DataArray | None = None, provenance: Mapping[str, Any] | None = None,
    ) -> "Neurons":  # fmt: skip
        """A set whose rows of W_out are read from the model. WorkbenchError for an empty one."""
        if chosen.empty:
            raise WorkbenchError(f"Neurons of {value} by {rule} were asked for.", found=NONE,
                                 do="Give more pairs or prompts, other layers, or a lower bar.")  # fmt: skip
        chosen = chosen.sort_values(["layer", "neuron"], ignore_index=True).astype({"layer": int, "neuron": int})
        writes = [write_weights(model, int(layer)).cpu().numpy()[own["neuron"]]  # type: ignore[call-overload]
                  for layer, own in chosen.groupby("layer")]  # fmt: skip
        held = {**model.provenance, **(provenance or {})}
        return cls(value, rule, chosen, np.concatenate(writes), tuple(layers), width, share, held)

    @property
    def indices(self) -> dict[int, np.ndarray]:
        """Layer -> indices of its neurons, ascending; layers without any are left out."""
        return {int(layer): np.array(own["neuron"]) for layer, own in self.chosen.groupby("layer")}  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.chosen)

    def __repr__(self) -> str:
        held = {layer: len(own) for layer, own in self.indices.items()}
        none = [str(layer) for layer in self.layers if layer not in held]
        return (
            f"Neurons({self.value}: {len(self):,} of {self.width * len(self.layers):,}, layer (count) "
            f"{', '.join(f'{layer} ({count})' for layer, count in held.items())}"
            f"{', none at ' + ', '.join(none) if none else ''}; {self.rule})"
        )

    def table(self) -> pd.DataFrame:
        """One row per neuron with the rule's numbers, the strongest first; `write_norm`: |W_out,i|."""
        table = self.chosen.assign(write_norm=np.linalg.norm(self.writes, axis=1))
        by = next((name for name in ("s", "delta", "difference", "entropy") if name in table), "write_norm")
        return table.sort_values(by, key=abs, ascending=by == "entropy", ignore_index=True)

    def overlap(self, other: "Neurons") -> dict[str, float]:
        """Neurons in both sets: shared, jaccard = shared / in either, and what chance gives.

        Chance draws as many neurons at random within each layer as the two sets have there: expected, the mean
        Jaccard; p, the share of draws with as many shared or more (exact, hypergeometric).
        """
        for name in ("fingerprint", "width"):
            mine, theirs = ((n.provenance.get(name), n.width)[name == "width"] for n in (self, other))
            if mine != theirs:
                raise WorkbenchError(f"Overlap of {self!r} and {other!r} was asked for.",
                                     found=f"{name} {mine} and {theirs}", allowed="sets of one model")  # fmt: skip
        here, there = self.indices, other.indices
        shared, chance = 0, np.ones(1)
        for layer in here.keys() & there.keys():
            n, m = len(here[layer]), len(there[layer])
            shared += len(np.intersect1d(here[layer], there[layer]))
            chance = np.convolve(chance, hypergeom.pmf(np.arange(min(n, m) + 1), self.width, n, m))
        both, k = len(self) + len(other), np.arange(len(chance))
        return {"shared": shared, "jaccard": shared / (both - shared), "expected": float(chance @ (k / (both - k))),
                "p": min(1.0, float(chance[shared:].sum()))}  # fmt: skip

    def check(self, model: Model) -> None:
        """WorkbenchError unless these are neurons of this very model."""
        check_fingerprint("Neurons", self.provenance, model)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {f"chosen.{name}": column.to_numpy() for name, column in self.chosen.items()}
        arrays["writes"] = self.writes
        if self.share is not None:
            arrays["share"] = self.share.values
        meta = {"value": self.value, "rule": self.rule, "layers": list(self.layers), "width": self.width,
                "columns": list(self.chosen), "provenance": self.provenance}  # fmt: skip
        return arrays, meta

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> "Neurons":
        chosen = pd.DataFrame({name: arrays[f"chosen.{name}"] for name in meta["columns"]})
        layers = tuple(meta["layers"])
        share = _by_layer(arrays["share"], layers) if "share" in arrays else None
        found = cls(meta["value"], meta["rule"], chosen, arrays["writes"], layers, meta["width"], share,
                    dict(meta["provenance"]))  # fmt: skip
        if model is not None:
            found.check(model)
        return found

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, provenance in its header; returns its path."""
        return save_arrays(path, "neurons", *self.pack())

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Neurons":
        """Read what `save` wrote; with `model`, refuse neurons of another one."""
        return cls.unpack(*load_arrays(path, "neurons"), model)


# -- what neurons do on pairs and while speaking -------------------------------------------------------------


def neuron_contrasts(model: Model, pairs: pd.DataFrame, layers: Iterable[int] | None = None) -> xr.Dataset:
    """How every neuron answers to the pairs of all values, from one capture: what selections are made of.

    difference (value, layer, neuron): mean a on positives - mean a on negatives, at the last token. d: Cohen's d, the
    difference over the pooled standard deviation of the two sides. residual (value, layer, d_model): the same
    difference of the residual stream after the block. Attributes carry the provenance. Always of the unsteered model.
    """
    pairs, wanted = check_pairs(pairs), model.check_layers(layers)
    texts, values = distinct_texts(pairs), in_order(pairs["value"])
    at = pd.Index(texts)
    rows = {value: [at.get_indexer(pd.Index(own[side])) for side in ("positive", "negative")]
            for value, own in pairs.groupby("value", sort=False)}  # fmt: skip
    if few := [value for value in values if len(rows[value][0]) < 2]:
        raise WorkbenchError("Contrasts of neurons were asked for.", found=f"one pair only of {', '.join(few)}",
                             allowed="two pairs or more of every value")  # fmt: skip
    found: dict[str, list[np.ndarray]] = {"difference": [], "d": [], "residual": []}
    for hook in ("mlp.hook_post", "resid_post"):
        for acts in _layer_by_layer(model, texts, wanted, hook, len(texts)):
            a = acts.values
            sides = [[a[side] for side in rows[value]] for value in values]
            difference = np.stack([positive.mean(0) - negative.mean(0) for positive, negative in sides])
            if hook == "resid_post":
                found["residual"].append(difference)
                continue
            spread = np.stack([np.sqrt((p.var(0, ddof=1) + n.var(0, ddof=1)) / 2) for p, n in sides])
            found["difference"].append(difference)
            with np.errstate(divide="ignore", invalid="ignore"):  # no spread: what never moves has no effect
                found["d"].append(np.where(difference == 0, 0, difference / spread))
    dims = {"difference": "neuron", "d": "neuron", "residual": "d_model"}
    arrays = {name: (("value", "layer", dims[name]), np.stack(stack, 1)) for name, stack in found.items()}
    attrs = {**model.provenance, "pairs": pairs_hash(pairs), "n_pairs": pairs["value"].value_counts().to_dict()}
    return xr.Dataset(arrays, {"value": values, "layer": wanted}, attrs)


def activation_shares(
    model: Model, prompts: Sequence[str], answers: Sequence[str], instruction: str | None = None, chat: bool = True,
    layers: Iterable[int] | None = None,
) -> xr.Dataset:  # fmt: skip
    """How often every neuron is on while the model writes given answers: what NPTI and LAPE are made of.

    active (layer, neuron): share of the states with a > 0, of those that wrote the answers' tokens: from the last
    prompt token to the last but one of the answer. a95: the 95 % quantile of a there. Attributes carry the provenance
    and the number of states, n_tokens.

    answers: as `generate(model, prompts, instruction=...)` gave them; they are read again in one pass, which sees what
    was there while they were written, up to the tokens into which the text falls. Empty answers count nothing.
    """
    prompts, answers = list(prompts), list(answers)
    if len(prompts) != len(answers) or not any(answers):
        raise WorkbenchError("Neurons were to be read while the model speaks.",
                             found=f"{len(prompts)} prompts, {sum(map(bool, answers))} answers that say something",
                             allowed="an answer for every prompt, one of them not empty")  # fmt: skip
    bare = f"{instruction} " if instruction else ""
    shown = model.render(prompts, instruction) if chat else [bare + prompt for prompt in prompts]
    texts = [prompt + answer for prompt, answer in zip(shown, answers, strict=True)]
    first, last = [], []
    for alone, whole in zip(model.encode(shown), model.encode(texts), strict=True):
        same = next((i for i, pair in enumerate(zip(alone, whole, strict=False)) if pair[0] != pair[1]), len(alone))
        first.append(max(same, 1) - 1)  # the state at the last token that both share writes the first that differs
        last.append(len(whole) - 1)
    wanted = model.check_layers(layers)
    active, a95, count = [], [], 0
    total = sum(map(len, model.encode(texts)))
    for acts in _layer_by_layer(model, texts, wanted, "mlp.hook_post", total, position="all"):
        text, position = acts["text"].values, acts["position"].values
        a = acts.values[(position >= np.array(first)[text]) & (position < np.array(last)[text])]
        count = len(a)
        active.append((a > 0).mean(0))
        a95.append(np.quantile(a, 0.95, axis=0))
    arrays = {name: (("layer", "neuron"), np.stack(stack)) for name, stack in (("active", active), ("a95", a95))}
    return xr.Dataset(arrays, {"layer": wanted}, {**model.provenance, "n_tokens": count})


def _layer_by_layer(
    model: Model, texts: Sequence[str], layers: Sequence[int], hook: str, rows: int, **how: Any
) -> Iterator[xr.DataArray]:
    """Activations (row, width) of one layer after the other, as many captured together as `HELD` allows."""
    width = len(write_weights(model, layers[0])) if hook == "mlp.hook_post" else model.d_model
    step = max(1, HELD // (4 * rows * width))
    for first in range(0, len(layers), step):
        with unsteered(model):
            acts = capture(model, texts, layers[first : first + step], hook, **how)
        yield from (acts.isel(layer=k) for k in range(acts.sizes["layer"]))


# -- choosing ------------------------------------------------------------------------------------------------


def select_neurons(
    model: Model,
    pairs: pd.DataFrame | xr.Dataset,
    probes: Probes,
    value: str | None = None,
    layers: Iterable[int] | None = None,
    share: float = 0.005,
    min_d: float = 0.8,
    selective: bool = True,
) -> Any:
    """The sparse set of neurons that carries a value's probe; see the module's page. The workbench's definition.

    pairs: of all values, since selectivity compares them; or their `neuron_contrasts`, captured once for any number of
        selections. value: None selects for every value: {value: Neurons}. layers: None takes
        `Probes.choose_layers`. share: of all neurons of those layers, at most; fewer where fewer pass the bars.
    min_d: least |Cohen's d|. selective: leave out neurons whose contrast for a value outside the target's groups is as
        large.

    Raises WorkbenchError for probes or contrasts of another model, models with a norm after the MLP, and where no
    neuron passes.
    """
    probes.check(model)
    check_writes(model, "Neurons that carry a probe's logit")
    chosen = probes.choose_layers() if layers is None else sorted({int(layer) for layer in layers})
    contrasts = pairs if isinstance(pairs, xr.Dataset) else neuron_contrasts(model, pairs, chosen)
    check_fingerprint("Contrasts of neurons", contrasts.attrs, model)
    known = [int(layer) for layer in contrasts["layer"].values if int(layer) in probes.layers]
    if not chosen or not {*chosen} <= {*known} or not 0 < share <= 1:
        raise WorkbenchError(f"The {share:.2%} of neurons that carry a value at layers {chosen} were asked for.",
                             allowed="above 0 % and up to 100 %, of layers with probes and contrasts: "
                             f"{', '.join(map(str, known))}")  # fmt: skip
    values = [v for v in map(str, contrasts["value"].values) if v in probes.values]
    wanted = values if value is None else [value]
    if missing := [v for v in wanted if v not in values]:
        raise WorkbenchError(f"Neurons of {', '.join(map(repr, missing))} were asked for.",
                             allowed=f"values with pairs and probes: {', '.join(values) or 'none here'}")  # fmt: skip
    own = contrasts.sel(value=values, layer=chosen)
    weight = probes.weight.sel(value=values, layer=chosen).values.astype(np.float64)
    writes = (write_weights(model, layer).double().cpu().numpy() for layer in chosen)
    c = np.stack([weight[:, k] @ out.T for k, out in enumerate(writes)], axis=1)  # (value, layer, neuron)
    s = c * own["difference"].values
    logit = (weight * own["residual"].values).sum(-1)  # (value, layer)
    provenance = {**contrasts.attrs, "probes": {key: probes.provenance.get(key) for key in ("method", "C", "pairs")},
                  "share": share, "min_d": min_d, "selective": selective, "values": values}  # fmt: skip
    sets = {}
    for name in wanted:
        i = values.index(name)
        passed = (s[i] > 0) & (np.abs(own["d"].values[i]) >= min_d)
        rivals = [j for j, other in enumerate(values) if outside(name, other)] if selective else []
        if rivals:
            passed &= s[i] > s[rivals].max(0)
        ranked = np.argsort(np.where(passed, -s[i], np.inf), axis=None, kind="stable")
        ranked = ranked[: min(max(1, round(share * passed.size)), passed.sum())]
        at = np.unravel_index(ranked, passed.shape)
        numbers = {"s": s, "c": c, "difference": own["difference"].values, "d": own["d"].values}
        table = pd.DataFrame({"layer": np.array(chosen)[at[0]], "neuron": at[1],
                              **{key: array[i][at].astype(np.float64) for key, array in numbers.items()}})  # fmt: skip
        carried = np.bincount(at[0], weights=table["s"], minlength=len(chosen)) / logit[i]
        sets[name] = Neurons.of(model, name, NEVA, table, chosen, passed.shape[1], _by_layer(carried, chosen),
                                provenance)  # fmt: skip
    return sets if value is None else sets[value]


def random_neurons(model: Model, like: Neurons, seed: int = 0) -> Neurons:
    """As many neurons in each layer, drawn at random: the control beside every selection."""
    like.check(model)
    rng = np.random.default_rng(seed)
    drawn = [pd.DataFrame({"layer": layer, "neuron": rng.choice(like.width, len(own), replace=False)})
             for layer, own in like.indices.items()]  # fmt: skip
    return Neurons.of(model, like.value, f"random, seed {seed}, as many as {like.rule}", pd.concat(drawn), like.layers,
                      like.width, None, {**like.provenance, "seed": seed})  # fmt: skip


def overlaps(sets: Mapping[str, Neurons]) -> pd.DataFrame:
    """`Neurons.overlap` of every two sets: value, other, shared, jaccard, expected, p."""
    names = list(sets)
    return pd.DataFrame([{"value": a, "other": b, **sets[a].overlap(sets[b])}
                         for i, a in enumerate(names) for b in names[i + 1 :]])  # fmt: skip


def outside(value: str, other: str) -> bool:
    """Whether a value shares no higher-order group with another; values beyond the ten have none."""
    own, theirs = (set(groups_of(name)) if name in VALUES else {name} for name in (value, other))
    return not own & theirs


# -- what the model lets one do ------------------------------------------------------------------------------


def write_weights(model: Model, layer: int) -> torch.Tensor:
    """W_out (neuron, d_model), float32: what each neuron writes to the residual stream per unit. Row i is W_out,i."""
    projection = model.neurons(layer)
    weight: Any = projection.weight
    return (weight.T if isinstance(projection, nn.Linear) else weight).detach().float()  # GPT-2 keeps it transposed


def neuron_identities(model: Model) -> pd.DataFrame:
    """By layer, how far two identities are off, relative to their largest entry: 0 but for rounding where they hold.

    linear: mlp_out == W_out a (+ b). additive: resid_pre + attn_out + mlp_out == resid_post. Measured once per model
    over one row of tokens spread over the vocabulary. Gemma 2 and 3 and OLMo 2 are linear to no better than 1, since a
    norm follows the MLP.
    """
    if "_neuron_identities" in vars(model):
        return vars(model)["_neuron_identities"]
    size = model.twin.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, min(12, model.context), device=model.device).long()[None]
    parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "mlp.hook_post")
    rows = []
    with torch.inference_mode(), unsteered(model):
        names = {f"blocks.{layer}.{part}" for layer in range(model.n_layers) for part in parts}
        _, cache = model.bridge.run_with_cache(ids, attention_mask=torch.ones_like(ids),
                                               names_filter=lambda name: name in names)  # fmt: skip
        for layer in range(model.n_layers):
            before, attention, mlp, after, a = (cache[f"blocks.{layer}.{part}"].float() for part in parts)
            bias = getattr(model.neurons(layer), "bias", None)
            written = a @ write_weights(model, layer) + (0 if bias is None else bias.float())
            rows.append({"layer": layer, "linear": _off(written, mlp),
                         "additive": _off(before + attention + mlp, after)})  # fmt: skip
    vars(model)["_neuron_identities"] = pd.DataFrame(rows)
    return vars(model)["_neuron_identities"]


def check_writes(model: Model, asked: str) -> None:
    """WorkbenchError unless what neurons write reaches the residual stream unchanged, at every layer."""
    table, allowed = neuron_identities(model), TOLERANCE[model.dtype]
    worst = table[["linear", "additive"]].max()
    if not bool((worst <= allowed).all()):
        layer = int(table.loc[table[worst.idxmax()].idxmax(), "layer"])  # type: ignore[arg-type]
        raise WorkbenchError(
            f"{asked} in {model.name} was asked for.",
            found=f"mlp_out differs from W_out a by {worst['linear']:.1e}, resid_pre + attn_out + mlp_out from "
            f"resid_post by {worst['additive']:.1e} (relative; most at layer {layer})",
            allowed=f"{allowed:.0e}: models that add what the MLP writes to the residual stream as it is",
            do="Where a norm follows the MLP (Gemma 2 and 3, OLMo 2), steer by ConVA, NPTI, LAPE or DPN-LE.",
        )


def _off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _by_layer(numbers: Any, layers: Sequence[int]) -> xr.DataArray:
    return xr.DataArray(numbers, {"layer": list(layers)}, ("layer",), "share")
