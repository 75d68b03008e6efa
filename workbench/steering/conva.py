r"""ConVA: the smallest push along a value's probe that reaches a target probability.

**Rule.** With P_V(e) = sigmoid(w.e + b) the probe at a layer and e the residual stream at the last prompt
token,

    eps = max(0, (logit(target) - w.e - b) / |w|),        e <- e + eps w / |w|

which is the solution of min |eps| subject to P_V(e + eps w/|w|) >= target. Layers go in order, each sees all
earlier shifts, and all of it happens inside the prefill: one forward pass.

**Down.** With `direction="down"` the target is a ceiling, P_V <= target, and eps = min(0, the same).

**Several values at once**: `value={"security": .95, "hedonism": .1}`. The shift is the shortest that meets all targets,

    min |d|^2  subject to  s_k (w_k.(e + d) + b_k) >= s_k logit(target_k),        s_k = 1 up, -1 down

which is d = sum_k lambda_k s_k w_k/|w_k| with lambda >= 0, and 0 for every target that the others' pushes meet anyway
(Karush, Kuhn, Tucker). Pushing until all are met exactly would be longer. With at most ten values every set of targets
is tried: among those whose lambda is not negative, the optimum is that of the largest lambda.gap, the dual's value.
Two targets that pull along nearly one line, up A and down its neighbour B, need enormous pushes: give `max_norm`.

**At an angle**: `angle=` (radians on the circle of ten equal places) in place of a value steers by a probe of its own,

    logit = sum_k a_k (w_k.e + b_k) / s_k

a_k the shares of the two values that enclose the angle, by nearness, as in `ValueVectors.blend`; s_k the within-class
standard deviation of V_k's held-out logit at the layer, so that neither value's scale wins and P is defined. At a
value's own angle this is its probe with the logit in units of s_k: the same direction, another P.

**Parameters.** `probes`: logistic; those of texts that do not keep the context are the ablation "without control".
`target`: P0, in (0, 1); a prompt that is beyond it already is left alone, bit for bit. `layers`: None takes every
layer with mean probe accuracy above .9 without the last 15 % (`Probes.choose_layers`). `gate`: None steers everyone
(the ablation). `scope`: "all" is the released code, one eps per prompt and layer, the same vector added at every token,
prompt and answer: the target is met exactly at the last prompt token only. "generated" adds it from there on. "token"
is the paper's wording, eps anew at each token: the target is met at every steered token. `window`: only these answer
tokens. `direction`: "up", "down", or one for each value; None is up for one value and, of several, down for targets
under one half. `max_norm`: the longest shift allowed at a layer, in multiples of the median length of the residual
stream there; a longer one is an error. `norms`: those medians; None takes them from the texts that the probes were
fitted on.

**Source.** Jin et al., ACL 2025, arXiv 2507.11316; several values, angles and ceilings are the workbench's own. With
scope "token" it is SCAV (`scav.py`) at layers of one's own choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, modf, pi
from typing import Any

import numpy as np
import torch

from ..errors import WorkbenchError
from ..gates import Gate
from ..probes import Probes
from ..values import VALUES
from .intervention import SCOPES, ProbeMethod

PARALLEL = 1e-10
"""Least eigenvalue of the cosines of some pushes below which they count as dependent."""


@dataclass(frozen=True, eq=False, repr=False)
class ConVA(ProbeMethod):
    """Bring P_V to `target`; see the module's page. Raises WorkbenchError for probes that are not logistic.

    value, target and direction hold one entry for each value where several are steered at once.
    """

    probes: Probes
    value: str | Sequence[str] | Mapping[str, float] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    target: float | Sequence[float] = 0.95
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "all"
    window: tuple[int, int | None] | None = None
    direction: str | Sequence[str] | None = None
    angle: float | None = None
    max_norm: float | None = None
    norms: Sequence[float] | None = None

    def __post_init__(self):
        if self.probes.method != "logistic":
            raise WorkbenchError(
                f"{self.name} was asked for.",
                found=f"probes by {self.probes.method}, whose P is not a probability",
                allowed="probes by 'logistic'",
                do="fit_probes(model, pairs, method='logistic')",
            )
        values, targets, shares = self._aims()
        for target in targets:
            if not 0 < target < 1:
                raise WorkbenchError(f"A target probability of {target} was asked for.", allowed="above 0 and below 1")
        directions = _one_each("directions", self.direction, len(values))
        if self.direction is None:
            directions = tuple("down" if len(values) > 1 and target < 0.5 else "up" for target in targets)
        if wrong := {*directions} - {"up", "down"}:
            raise WorkbenchError(f"The direction {min(wrong)!r} was asked for.", allowed="'up', 'down'")
        self.probes.check_values(shares)
        self._set(value=next(iter(shares)))  # what `_settle` checks and tells is one value
        self._settle(self.layers, self.scope, SCOPES)
        one = len(values) == 1
        self._set(
            value=values[0] if one else values, target=targets[0] if one else targets, _shares=shares, _faces={},
            direction=directions[0] if one else directions, _values=values,
            _sign=[1.0 if way == "up" else -1.0 for way in directions], _logit=[log(p / (1 - p)) for p in targets],
        )  # fmt: skip
        norms = None if self.norms is None else tuple(map(float, _one_each("norms", self.norms, len(self._steered))))
        if self.max_norm is not None:
            norms = self._medians(self.max_norm, norms)
        self._set(norms=norms, _norms=dict(zip(self._steered, norms or (), strict=False)))

    def _aims(self) -> tuple[tuple[str, ...], tuple[float, ...], dict[str, float]]:
        """What is steered, to which target, and the values whose probes this takes (with a blend's shares)."""
        value, target = self.value, self.target
        if self.angle is not None:
            name = f"{np.degrees(self.angle):g}°"
            if value not in (None, name) or not isfinite(self.angle):
                raise WorkbenchError(f"{self.name} of {value} at {name} was asked for.",
                                     allowed="a value, or an angle in radians")  # fmt: skip
            return (name,), _one_each("targets", target, 1), enclosing(self.angle)
        if isinstance(value, Mapping):
            if target != ConVA.target:
                raise WorkbenchError(f"{self.name} of {dict(value)} with target {target} was asked for.",
                                     allowed="a target with each value, or one beside them")  # fmt: skip
            value, target = tuple(value), tuple(value.values())
        values = (value,) if isinstance(value, str) else tuple(value or ())
        if not 1 <= len(values) <= 10 or len({*values}) < len(values):
            raise WorkbenchError(f"{self.name} of {', '.join(values) or 'no value'} was asked for.",
                                 allowed="one to ten different values, or an angle")  # fmt: skip
        return values, _one_each("targets", target, len(values)), dict.fromkeys(values, 1.0)

    @property
    def _steered(self) -> tuple[int, ...]:
        return tuple(self.layers or ())

    def _medians(self, allowed: float, norms: tuple[float, ...] | None) -> tuple[float, ...]:
        """Median length of the residual stream at each steered layer: as given, or at the end of the probes' texts."""
        asked = f"{self.name} with shifts of at most {allowed} median residual norms was asked for."
        if not allowed > 0:
            raise WorkbenchError(asked, allowed="above 0")
        if norms is not None:
            return norms
        if self.probes.activations is None:
            raise WorkbenchError(asked, found="probes read from a file, without the activations they were fitted on",
                                 do="Give norms=, as strength.norms(model, prompts, layers) finds them.")  # fmt: skip
        acts = self.probes.activations.acts.transpose("layer", "text", "d_model")
        return tuple(float(np.median(np.linalg.norm(acts.sel(layer=layer).values, axis=1))) for layer in self._steered)

    def _parts(self) -> dict[str, Any]:
        """Without what is left open, and without `norms`, which are many: neither is told by `repr`."""
        parts = super()._parts()
        return {name: part for name, part in parts.items() if name == "gate" or part is not None and name != "norms"}

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, meta = super().pack()
        return arrays, {**meta, "norms": self.norms}

    # -- probes ----------------------------------------------------------------------------------------------

    def planes(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """w (value, d_model) and b (value) of all that is steered, at a layer, float32; a blend is one of them."""
        known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = vars(self)["_planes"]
        if (layer, device) not in known:
            shares: dict[str, float] = vars(self)["_shares"]
            where = {"value": [*shares], "layer": layer}
            mix = np.eye(len(shares))
            if self.angle is not None:
                mix = np.array([[share / self._spread(value, layer) for value, share in shares.items()]])
            both = (mix @ array.sel(where).values for array in (self.probes.weight, self.probes.bias))
            known[layer, device] = tuple(torch.from_numpy(a.astype(np.float32)).to(device) for a in both)  # pyright: ignore[reportArgumentType]
        return known[layer, device]

    def plane(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """w (d_model) and b of the value, of the first of several, or of the blend."""
        w, b = self.planes(layer, device)
        return w[0], b[0]

    def _spread(self, value: str, layer: int) -> float:
        """Standard deviation of a value's held-out logit within its two classes, pooled."""
        own = (self.probes.examples["value"] == value).to_numpy()
        logits = self.probes.held_out.sel(layer=layer).values[own]
        positive = self.probes.examples["positive"].to_numpy()[own]
        apart = np.concatenate([logits[side] - logits[side].mean() for side in (positive, ~positive)])
        return float(np.sqrt(apart @ apart / (len(apart) - 2)))

    def probability(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """P_V (...) of the value, of the first of several, or of the blend."""
        return self.probabilities(layer, e)[..., 0]

    def probabilities(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """P (..., value) of all that is steered."""
        w, b = self.planes(layer, e.device)
        return torch.sigmoid(e @ w.T + b)

    # -- the push --------------------------------------------------------------------------------------------

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        sign, logit = vars(self)["_sign"], vars(self)["_logit"]
        if len(sign) > 1:
            return self._together(layer, e)
        w, b = self.plane(layer, e.device)
        norm = w.norm()
        eps = (logit[0] - e @ w - b) / norm
        eps = eps.clamp(min=0) if sign[0] > 0 else eps.clamp(max=0)
        self._bounded(layer, eps.abs())
        return eps[..., None] * (w / norm)

    def _together(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """The shortest shift that meets all targets."""
        faces = self._at(layer, e.device)
        gap = faces.bound - e.to(faces.push) @ faces.push.T
        push = faces.shortest(gap.reshape(-1, gap.shape[-1])).reshape(gap.shape)
        unmet = gap - push @ faces.cosine > 1e-6 * (1 + gap.abs().amax(-1, keepdim=True))
        if bool(unmet.any()):
            found = self._opposed(faces, unmet | (push > 0), unmet.sum(-1))
            raise WorkbenchError(f"{self!r} was to steer layer {layer}.",
                                 found=f"targets that no shift meets together: {found}",
                                 do="Take one of them away, or turn its direction.")  # fmt: skip
        shift = push @ faces.push
        self._bounded(layer, shift.norm(dim=-1), faces, push > 0)
        return shift.to(e)

    def _at(self, layer: int, device: torch.device) -> "Faces":
        faces: dict[Any, Faces] = vars(self)["_faces"]
        if (layer, device) not in faces:
            w, b = (part.cpu().double() for part in self.planes(layer, device))
            sign, logit = (torch.tensor(vars(self)[name], dtype=torch.float64) for name in ("_sign", "_logit"))
            length = w.norm(dim=1)
            faces[layer, device] = Faces((sign / length)[:, None] * w, sign * (logit - b) / length, device)
        return faces[layer, device]

    def _bounded(
        self, layer: int, length: torch.Tensor, faces: "Faces | None" = None, pushing: torch.Tensor | None = None
    ) -> None:
        """WorkbenchError for shifts of these lengths (...) beyond `max_norm`; pushing (..., value): whose they are."""
        if self.max_norm is None:
            return
        share = length / vars(self)["_norms"][layer]
        if bool((share > self.max_norm).any()):
            found = f"a shift of {float(share.max()):.3g} median residual norms"
            if faces is not None and pushing is not None:
                found += ": " + self._opposed(faces, pushing, length)
            raise WorkbenchError(f"{self!r} was to steer layer {layer}.", found, f"max_norm={self.max_norm:g}",
                                 "Milder targets, fewer values, other layers, or a larger max_norm.")  # fmt: skip

    def _opposed(self, faces: "Faces", pushing: torch.Tensor, badness: torch.Tensor) -> str:
        """The two targets that pull most against each other among those pushing where `badness` (...) is largest."""
        ways = [f"{value} {way}" for value, way in zip(vars(self)["_values"], self.direction or (), strict=True)]
        own = pushing.reshape(-1, len(ways))[int(badness.reshape(-1).argmax())].nonzero()[:, 0].tolist()
        cosine = faces.cosine.tolist()
        lowest, i, j = min(((cosine[i][j], i, j) for i in own for j in own if i < j), default=(0.0, 0, 0))
        if lowest >= 0:
            return f"{' and '.join(ways[k] for k in own)} alone"
        return f"{ways[i]} and {ways[j]} pull against each other (cosine of their pushes {lowest:.3f})"


class Faces:
    """Half spaces push_k.e >= bound_k, and the shortest way into all of them from anywhere.

    push (k, d): unit vectors; bound (k). cosine (k, k): of the pushes. inverse (set, k, k): for each set of half spaces
    that are independent, the inverse of its own cosines, 0 elsewhere; the empty set first. All float64, on the device
    (on the CPU where it has no float64).
    """

    def __init__(self, push: torch.Tensor, bound: torch.Tensor, device: torch.device):
        cosine = (push @ push.T).numpy()
        member = (np.arange(2 ** len(cosine))[:, None] >> np.arange(len(cosine)) & 1).astype(bool)
        own = member[:, :, None] & member[:, None]
        table = np.where(own, cosine, np.eye(len(cosine)))  # outside a set the identity, so that all have one shape
        kept = np.linalg.eigvalsh(table)[:, 0] > PARALLEL
        place = torch.device("cpu") if device.type == "mps" else device
        self.push, self.bound, self.cosine, self.inverse = (
            part.to(place)
            for part in (push, bound, torch.from_numpy(cosine),
                         torch.from_numpy(np.where(own[kept], np.linalg.inv(table[kept]), 0.0)))
        )  # fmt: skip

    def shortest(self, gap: torch.Tensor) -> torch.Tensor:
        """How far along each push (row, k), from points that far from the bounds (row, k); exact zeros inside all."""
        rows = max(1, 2**24 // self.inverse.numel())  # of 128 MB at most
        return torch.cat([self._best(part) for part in gap.split(rows)])

    def _best(self, gap: torch.Tensor) -> torch.Tensor:
        # Inside all, where no gap is positive, no set has more than the empty one's 0, which comes first.
        each = torch.einsum("skj,nj->nsk", self.inverse, gap)  # how far, were it this set that is met exactly
        value = torch.where((each >= 0).all(-1), (each * gap[:, None]).sum(-1), -torch.inf)
        return each[torch.arange(len(gap), device=gap.device), value.argmax(1)]


def enclosing(angle: float) -> dict[str, float]:
    """The one or two values next to an angle (radians, ten equal places), and their shares, which sum to 1.

    By nearness, as in `ValueVectors.blend`; by itself, since a dial asks at every move.
    """
    past, place = modf((angle % (2 * pi)) * len(VALUES) / (2 * pi))
    shares = {int(place) % len(VALUES): 1 - past, (int(place) + 1) % len(VALUES): past}
    kept = {k: share for k, share in sorted(shares.items()) if share > 1e-9}
    return {VALUES[k]: share / sum(kept.values()) for k, share in kept.items()}


def _one_each(what: str, given: Any, count: int) -> tuple[Any, ...]:
    """One entry for each of `count`, a single one standing for all."""
    entries = (given,) * count if given is None or isinstance(given, str) or not np.ndim(given) else tuple(given)
    if len(entries) != count:
        raise WorkbenchError(f"ConVA with {len(entries)} {what} was asked for.", allowed=f"one, or {count}")
    return entries
