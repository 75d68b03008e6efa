r"""Value leakage: what steering one value does to the other nine. The measures are the workbench's own definitions.

$\Delta_{ij} = CSR_j(\text{steer } i) - CSR_j(\text{base})$ on the same answers' questions and seeds, seeds first, then
questions averaged. With $(x)_+ = \max(0, x)$ and i's higher-order group G(i) (hedonism: both of its groups):

- **total**$_i = \sum_{j \ne i} (\Delta_{ij})_+$, in units of CSR;
- **NLR**$_i$ = total$_i$ / 9 / $\Delta_{ii}$, how much; undefined where $\Delta_{ii}$ is not above its own noise, that
  is where its paired 95 % interval reaches 0;
- **NGLR**$_i = \sum_{j \notin G(i)} (\Delta_{ij})_+$ / total$_i$, how far; undefined where total$_i$ does not exceed
  the noise floor, that is where the interval of the excess over it reaches 0 (without that floor: the next one's).

The names are those of NeVA (arXiv 2602.07356), whose formulas are not public: these are ours, and comparable with
nothing but themselves.

**Floors.** A maximum with 0 makes leakage of noise: with 70 questions and no leakage NLR is .03 to .12 and NGLR about
.78, the share of other values that lie outside the group. Each measure stands beside its floors and as excess over
them. Floor "base" is base against base: base at one seed against base at its other seeds, mean over seeds, as if that
were the method's, over the method's own $\Delta_{ii}$. A difference of one seed from S - 1 others is noisier than the
method's, of means over S seeds: it is drawn together by $\sqrt{2 (S - 1)} / S$, which makes both alike where answers of
one seed are independent. Where method and base share their draws they differ less, and the floor is a little high. It
needs two seeds; greedy decoding has no noise of this kind, and its floor is 0. Any other floor is a method, such as the
random direction of the same norm: what a push without direction does.

**Intervals** resample questions within the value they are about, seeds together: a ratio of sums of maxima has no
closed form. The same resamples serve method and floors, so that the excess is paired. Resampling adds noise to what is
noisy already and lifts every maximum once more: intervals of total and NLR are the resamples' quantiles, moved until
the resamples' mean is the estimate. They tell how far the measure would spread, the lift by noise included, for which
the floor stands. Shares (NGLR, `inside`) are lifted little and keep their quantiles. In simulations of 30 to 70
questions the intervals of total, NLR and their excess covered the measure's expectation in 91 to 98 %, those of one
value's share in 92 to 95 %, of a mean share in 80 to 92 %: read these as a little short. Means are over the values
where a measure is defined, which is taken as given. Undefined is NaN with its reason, never 0.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..rates import newcombe_paired
from ..values import GROUPS, VALUES, Order, circular_steps, groups_of
from .comparison import EVERY, QUESTION, checked, paired, scores

K = len(VALUES)
OFF = ~np.eye(K, dtype=bool)
INSIDE = np.array([[any(w in GROUPS[g] for g in groups_of(v)) for w in VALUES] for v in VALUES])  # i itself too
MEASURES = ("total", "nlr", "nglr")


class Profile(NamedTuple):
    """steps: step (0 is the steered value itself), n (cells), and raw, raw_low, raw_high, centred, centred_low,
    centred_high: mean Delta at so many steps round the circle. fit: rows raw, centred; amplitude, low, high, offset, r2
    of Delta = offset + amplitude cos(step x 36 degrees) over the cells off the diagonal.
    """

    steps: pd.DataFrame
    fit: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Leakage:
    """What steering each value did to all ten; made by `leakage`. See the module's page for definitions (our own).

    matrix, low, high: (steered, value), Delta and its paired 95 % interval (`rates.newcombe_paired`); NaN where the
        value was not steered or nothing was judged.
    table: a row per measure ("total", "nlr", "nglr"), value and floor: measure, value, floor, estimate, low, high, at
        (the floor's own figure), excess, excess_low, excess_high, why ("" where defined, else why all these are NaN).
        Value "mean": the mean over the values where the measure is defined.
    floors: floor -> "" or what is to be said of it: why it is 0 or missing.
    resampled: (resample, steered, value), Delta of each resample.
    """

    method: str
    base: str
    set: str
    matrix: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray
    table: pd.DataFrame
    floors: dict[str, str]
    resampled: np.ndarray

    def __repr__(self) -> str:
        estimate, low, high, why = self.nlr.loc["mean"]
        told = str(why) or f"{estimate:.2f} ({low:.2f} to {high:.2f})"
        return f"Leakage({self.method!r} over {self.base!r}, {self.set} questions: NLR, our own definition, {told})"

    @property
    def nlr(self) -> pd.DataFrame:
        """NLR, indexed by steered value and "mean": estimate, low, high, why."""
        return self._measure("nlr")

    @property
    def nglr(self) -> pd.DataFrame:
        """NGLR, indexed by steered value and "mean": estimate, low, high, why."""
        return self._measure("nglr")

    def _measure(self, name: str) -> pd.DataFrame:
        rows = self.table[self.table["measure"] == name].drop_duplicates("value")
        return rows.set_index("value")[["estimate", "low", "high", "why"]]

    def summary(self) -> pd.DataFrame:
        """A row per value, and "mean": value, gain (Delta_ii), gain_low, gain_high; of each measure x: x, x_low, x_high
        and for each floor "x floor (base)", "x excess (base)", "x excess_low (base)", "x excess_high (base)"; why.
        """
        parts = {"gain": self.matrix, "gain_low": self.low, "gain_high": self.high}
        out = pd.DataFrame({name: np.diag(part.values) for name, part in parts.items()}, index=list(VALUES))
        gain = _mean(out["gain"].to_numpy())
        out.loc["mean"] = [gain, *_ends(gain, _mean(self.resampled.diagonal(axis1=1, axis2=2)), -1, 1)]
        for measure in MEASURES:
            rows = self.table[self.table["measure"] == measure]
            out[[measure, f"{measure}_low", f"{measure}_high"]] = self._measure(measure)[["estimate", "low", "high"]]
            for floor, own in rows.groupby("floor", sort=False):
                if floor:
                    named = {"at": "floor", **{name: name for name in ("excess", "excess_low", "excess_high")}}
                    for column, name in named.items():
                        out[f"{measure} {name} ({floor})"] = own.set_index("value")[column]
        told = {measure: self._measure(measure)["why"] for measure in MEASURES}
        out["why"] = ["; ".join(f"{m}: {why[v]}" for m, why in told.items() if why[v]) for v in out.index]
        out.attrs["definition"] = "NLR and NGLR are the workbench's own definitions"
        return out.rename_axis("value").reset_index()

    def centred(self) -> xr.DataArray:
        """Delta less what its row and its column share, (steered, value): often steering lifts every value.

        Row and column effects are those of least squares over the cells off the diagonal, so that the steered values'
        own gains do not count; the diagonal is shown less the same effects. NaN unless two values were steered; where
        few were, column effects take in much of their pattern.
        """
        return self.matrix.copy(data=_centred(self.matrix.values))

    def profile(self, order: Order = None) -> Profile:
        """Mean Delta by circular step, and the cosine through it: see `Profile`. order: as for `circular_steps`."""
        steps = circular_steps(order=order)
        known = np.isfinite(self.matrix.values)
        places = [(steps == step) & known for step in range(K // 2 + 1)]
        table = {"step": range(len(places)), "n": [place.sum() for place in places]}
        fit = {}
        off = OFF & known
        design = np.column_stack([np.ones(off.sum()), np.cos(steps[off] * 2 * np.pi / K)])
        solve = np.linalg.pinv(design)
        for name, make in (("raw", np.asarray), ("centred", _centred)):
            delta, resampled = make(self.matrix.values), make(self.resampled)
            means = np.array([_mean(delta[place]) for place in places])
            drawn = np.stack([_mean(resampled[:, place]) for place in places], axis=1)
            ends = _ends(means, drawn)
            table |= {name: means, f"{name}_low": ends[0], f"{name}_high": ends[1]}
            offset, amplitude = solve @ delta[off]
            low, high = _ends(amplitude, resampled[:, off] @ solve[1])
            spread = ((delta[off] - delta[off].mean()) ** 2).sum() if off.any() else 0
            left = ((delta[off] - design @ [offset, amplitude]) ** 2).sum()
            fit[name] = dict(amplitude=amplitude, low=low, high=high, offset=offset,
                             r2=1 - left / spread if spread > 1e-12 else np.nan)  # fmt: skip
        return Profile(pd.DataFrame(table), pd.DataFrame.from_dict(fit, orient="index"))

    def inside(self) -> pd.DataFrame:
        """Share of the residual leakage (centred, positive) that stays in the steered value's higher-order group.

        A row per value, and "mean": value, share, low, high, chance (the share of other values that lie in the group:
        what noise gives). NaN where nothing is left.
        """

        def share(delta: np.ndarray) -> np.ndarray:
            positive = np.where(OFF, np.maximum(_centred(delta), 0), 0)
            return _ratio((positive * INSIDE).sum(-1), positive.sum(-1))

        chance, shares, drawn = (INSIDE.sum(1) - 1) / (K - 1), share(self.matrix.values), share(self.resampled)
        low, high = _quantiles(np.column_stack([drawn, _mean(drawn)]))
        return pd.DataFrame({"value": [*VALUES, "mean"], "share": [*shares, _mean(shares)], "low": low, "high": high,
                             "chance": [*chance, _mean(chance[np.isfinite(shares)])]})  # fmt: skip


def leakage(
    answers: pd.DataFrame, method: str, base: str = "Base", set: str = "own",
    floors: Sequence[str] = ("base", "random direction"), resamples: int = 1000, seed: int = 0, prompt: str = "none",
    temperature: float | None = None,
) -> Leakage:  # fmt: skip
    """Leakage of a method from judged answers (a column for each of the ten values); see the module's page.

    set: "own", each value's own test questions, or "pooled", the same questions for every steered value. floors: "base"
    for base against base, else methods of the table. prompt, temperature: which answers; temperature may be left out
    where there is only one. Intervals hang on `seed` and not on the order of rows.

    Raises WorkbenchError where the method or base has no such answers, or where none was judged for all values.
    """
    part = _Part(answers, set, prompt, temperature, base, resamples, seed)
    own, of_base = part.means(method)
    delta, drawn = part.over(own - of_base)
    if not np.isfinite(delta[OFF]).any():
        raise WorkbenchError(f"The leakage of {method!r} was asked for.", found="no judgements of the other values",
                             do="Judge the answers for all ten values.")  # fmt: skip
    low, high = (np.stack(ends) for ends in zip(*map(newcombe_paired, own, of_base), strict=True))
    gain, gain_drawn = np.diag(delta), drawn.diagonal(axis1=1, axis2=2)
    figures, figures_drawn = _measures(delta, gain), _measures(drawn, gain_drawn)
    told, known = {}, {}
    for floor in floors:
        told[floor], versions = part.floor(floor, method)
        at = [(_measures(d, gain), _measures(r, gain_drawn)) for d, r in map(part.over, versions)]
        if at:
            known[floor] = [{m: _mean(np.stack([one[k][m] for one in at]), 0) for m in MEASURES} for k in (0, 1)]
    why = _reasons(delta, np.diag(low), figures, figures_drawn, known)
    tables = []
    for measure in MEASURES:
        reasons = np.array(why[measure])
        defined = reasons == ""
        reasons = [*reasons, "" if defined.any() else "defined for no value"]

        def each(x: np.ndarray, defined: np.ndarray = defined) -> np.ndarray:
            """Of all values and of their mean, NaN where undefined."""
            x = np.where(defined, x, np.nan)
            return np.concatenate([x, _mean(x)[..., None]], axis=-1)

        estimate, samples = each(figures[measure]), each(figures_drawn[measure])
        share = measure == "nglr"
        ends = _quantiles(samples) if share else _ends(estimate, samples, 0)
        for floor in floors or [""]:
            nothing = {m: np.full(K, np.nan) for m in MEASURES}, {m: np.full(drawn.shape[:2], np.nan) for m in MEASURES}
            at, at_drawn = (each(one[measure]) for one in known.get(floor, nothing))
            beyond = _quantiles(samples - at_drawn) if share else _ends(estimate - at, samples - at_drawn)
            tables.append(pd.DataFrame({
                "measure": measure, "value": [*VALUES, "mean"], "floor": floor, "estimate": estimate, "low": ends[0],
                "high": ends[1], "at": at, "excess": estimate - at, "excess_low": beyond[0], "excess_high": beyond[1],
                "why": reasons,
            }))  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    return Leakage(method, base, set, *map(_labelled, (delta, low, high)), table, told, drawn)


def _labelled(delta: np.ndarray) -> xr.DataArray:
    names = {"steered": list(VALUES), "value": list(VALUES)}
    return xr.DataArray(delta, names, ("steered", "value"), "delta", {"units": "CSR"})


def _reasons(delta: np.ndarray, gain_low: np.ndarray, figures: dict, drawn: dict, known: dict) -> dict[str, list[str]]:
    """Per measure and value "" or why it is not defined."""
    floor = next(iter(known), None)  # the first: base against base, where there is one
    if floor is not None:
        excess = figures["total"] - known[floor][0]["total"]
        least = _ends(excess, drawn["total"] - known[floor][1]["total"])[0]
    why: dict[str, list[str]] = {measure: [] for measure in MEASURES}
    for i in range(K):
        judged = "" if np.isfinite(delta[i]).all() else "not steered, or not judged for all values"
        why["total"].append(judged)
        own = f"own gain {delta[i, i]:+.3f} is not above its noise: its interval begins at {gain_low[i]:+.3f}"
        why["nlr"].append(judged or (own if gain_low[i] <= 0 else ""))
        beyond = "no floor to compare with: answer with two seeds or more"
        if floor is not None:
            beyond = "" if least[i] > 0 else f"total leakage does not exceed the floor ({floor}) beyond its noise"  # pyright: ignore[reportPossiblyUnboundVariable]
        why["nglr"].append(judged or beyond)
    return why


class _Part:
    """Answers of one set, prompt and temperature, as arrays by steered value, question and judged value."""

    def __init__(self, answers: pd.DataFrame, set: str, prompt: str, temperature: float | None, base: str,
                 resamples: int, seed: int):  # fmt: skip
        answers = checked(answers)
        chosen = answers[(answers["set"] == set) & (answers["prompt"] == prompt)]
        there = list(chosen["temperature"].unique())
        asked = f"Leakage on the set {set!r}, prompt {prompt!r}, was asked for."
        if temperature is None and len(there) > 1:
            raise WorkbenchError(asked, found=f"temperatures {there}", do="Say which: temperature=...")
        chosen = chosen if temperature is None else chosen[chosen["temperature"] == temperature]
        if chosen.empty:
            raise WorkbenchError(asked, found="no such answers", allowed=f"sets {list(answers['set'].unique())}")
        self.base, self.greedy = base, bool((chosen["temperature"] == 0).all())
        questions = chosen[QUESTION].drop_duplicates().sort_values(QUESTION).reset_index(drop=True)
        self.count = len(questions)
        self.answers = chosen.merge(questions.assign(unit=questions.index), on=QUESTION, how="left")
        draw, strata = np.random.default_rng(seed), questions.groupby("about", **EVERY).indices
        self.weights = np.empty((resamples, self.count))
        for own in strata.values():
            self.weights[:, own] = draw.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)

    def means(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores of a method and of base, means over seeds where both were judged: (steered, question, value)."""
        rows = self.answers[self.answers["method"].isin([method, self.base])].reset_index(drop=True)
        if not (rows["method"] == method).any():
            raise WorkbenchError(f"The leakage of {method!r} was asked for.", found="no answers of it",
                                 allowed=", ".join(map(repr, self.answers["method"].unique())))  # fmt: skip
        both = paired(rows, self.base, {value: scores(rows, value) for value in VALUES})
        both = both[(both["method"] == method).to_numpy()].assign(unit=rows.loc[rows["method"] == method, "unit"])
        first, second = both[list(VALUES)], both[[f"{value} base" for value in VALUES]].set_axis(VALUES, axis=1)
        return (self._array(both, first.where(second.notna())), self._array(both, second.where(first.notna())))

    def _array(self, rows: pd.DataFrame, judged: pd.DataFrame) -> np.ndarray:
        out = np.full((K, self.count, K), np.nan)
        mean = judged.groupby([rows["value"], rows["unit"]]).mean()
        out[[VALUES.index(value) for value, _ in mean.index], [unit for _, unit in mean.index]] = mean
        return out

    def floor(self, name: str, method: str) -> tuple[str, list[np.ndarray]]:
        """What is to be said of a floor, and its differences (steered, question, value), one array or several."""
        if name != "base":
            if not (self.answers["method"] == name).any():
                return f"no answers of {name!r}", []
            first, second = self.means(name)
            return "", [first - second]
        rows = self.answers[self.answers["method"] == self.base]
        seeds = sorted(rows["seed"].unique())
        if self.greedy:
            return "greedy decoding: base does not differ from itself", [0 * self.means(self.base)[0]]
        if len(seeds) < 2:
            return "one seed: base against base needs two or more", []
        judged = pd.DataFrame({value: scores(rows, value) for value in VALUES}, index=rows.index)
        by_seed = np.stack([self._array(rows[own], judged[own]) for own in (rows["seed"] == seed for seed in seeds)])
        alike = np.sqrt(2 * (len(seeds) - 1)) / len(seeds)
        return "", [alike * (one - _mean(np.delete(by_seed, s, 0), 0)) for s, one in enumerate(by_seed)]

    def over(self, each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over questions, (steered, value), and of every resample, (resample, steered, value)."""
        drawn = np.full((len(self.weights), K, K), np.nan)
        for i, own in enumerate(each):
            known = np.isfinite(own)
            asked = known.any(1)
            weights, there = self.weights[:, asked], known[asked]
            drawn[:, i] = _ratio(weights @ np.where(there, own[asked], 0), weights @ there)
        return _mean(each, 1), drawn


def _measures(delta: np.ndarray, gain: np.ndarray) -> dict[str, np.ndarray]:
    """The measures (..., steered) of Delta (..., steered, value) over gains (..., steered); NaN over no gain."""
    positive = np.where(OFF, np.maximum(delta, 0), 0)
    total = positive.sum(-1)
    return {"total": total, "nlr": _ratio(total / (K - 1), gain), "nglr": _ratio((positive * ~INSIDE).sum(-1), total)}


def _centred(delta: np.ndarray) -> np.ndarray:
    """Delta (..., steered, value) less row and column effects fitted off the diagonal."""
    there = np.isfinite(delta.reshape(-1, K, K)).all(0)
    off = OFF & there
    if off.any(1).sum() < 2:
        return np.full_like(delta, np.nan)
    one = np.eye(K)
    design = np.concatenate([np.repeat(one, K, 0), np.tile(one, (K, 1))], axis=1)  # cell: its row, its column
    effects = design @ np.linalg.pinv(design[off.ravel()])
    shared = delta[..., off] @ effects.T
    left = np.where(there, delta - shared.reshape(delta.shape), np.nan)
    return np.where(np.abs(left) < 1e-12, 0, left)  # rounding is no leakage


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where that is not above 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)[()]


def _mean(x: np.ndarray, axis: int = -1) -> Any:
    """Mean of what is known along an axis, NaN of nothing."""
    known = np.isfinite(x)
    return _ratio(np.where(known, x, 0).sum(axis), known.sum(axis))


def _ends(estimate: Any, drawn: np.ndarray, lowest: float = -np.inf, highest: float = np.inf) -> np.ndarray:
    """95 % interval over the first axis, (2, ...): the resamples' quantiles, moved by estimate - their mean."""
    return np.clip(_quantiles(drawn) + estimate - _mean(drawn, 0), lowest, highest)


def _quantiles(drawn: np.ndarray) -> np.ndarray:
    """Of the resamples in which a ratio is defined, (2, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN: NaN
        return np.nanquantile(drawn, [0.025, 0.975], axis=0)


def at_matched(
    answers: pd.DataFrame, methods: Sequence[str], base: str = "Base", set: str = "own", resamples: int = 1000,
    seed: int = 0, prompt: str = "none", temperature: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Methods tuned to equal control, side by side: gain, total leakage and NLR, and every two methods' differences.

    A row per method (against ""), then one per two methods, their differences on the same questions: method, against,
    and for x in gain (mean Delta_ii), total, nlr: x, x_low, x_high, x_values (how many values it is the mean of: those
    judged, for NLR defined, in all methods of the row). Intervals resample questions, the same for every method.
    Only as good as the match: a difference in total says little where the gains differ too, NLR then says more.
    """
    found = {m: leakage(answers, m, base, set, (), resamples, seed, prompt, temperature) for m in methods}

    def figures(one: Leakage, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Of each value, NaN where undefined."""
        gain = delta.diagonal(axis1=-2, axis2=-1)
        told = {"gain": gain, **_measures(delta, gain)}
        return {x: np.where((one._measure("total" if x == "gain" else x)["why"] == "").to_numpy()[:K], told[x], np.nan)
                for x in ("gain", "total", "nlr")}  # fmt: skip

    each = {m: (figures(one, one.matrix.values), figures(one, one.resampled)) for m, one in found.items()}

    def row(method: str, against: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {"method": method, "against": against}
        for x in ("gain", "total", "nlr"):
            less = each[against] if against else [{x: np.zeros(K)}] * 2
            both = each[method][0][x] - less[0][x]
            defined = np.isfinite(both)
            drawn = _mean(np.where(defined, each[method][1][x] - less[1][x], np.nan))
            low, high = _ends(_mean(both), drawn)
            out |= {x: float(_mean(both)), f"{x}_low": low, f"{x}_high": high, f"{x}_values": int(defined.sum())}
        return out

    return pd.DataFrame([row(m) for m in methods] + [row(*pair) for pair in combinations(methods, 2)])
