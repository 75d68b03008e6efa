"""Making fits: from probes, resamples, vectors or a matrix, at one layer or along all."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..values import VALUES, VALUES19, Order, circular_order
from .fit import CircumplexFit
from .labellings import Circle, compute_statistic, null_distribution, share_at_least
from .resampling import split_half
from .similarity import checked, checked_matrix, cosine_matrices, cosines, names_of, resampled_matrices


def circumplex_fit(vectors: Any, bootstrap: Any = 0, order: Order = None, layout: str = "equal",
                   better_of: Iterable[tuple[str, Order]] = (), layer: int | None = None, labellings: int = 19_999,
                   seed: int = 0) -> CircumplexFit:
    """Hold value vectors against a circle: centred, with the raw fit beside it as `.raw`.

    vectors: `Probes`; a `Resampled`, which is its own bootstrap; an array or DataArray as for `cosines`; or a
        similarity matrix (value, other) like `human_reference`'s, used as it is. Ten values, the nineteen, or any
        others that `order` names.
    bootstrap: 0; of `Probes`, how many times to fit again on resampled pairs of texts; else a `Resampled`, or vectors
        fitted on resampled pairs, (resample, value, d_model). Uncertainty comes from the texts and vectors alone hold
        none, so a mere number is refused for them. Intervals are reflected: percentile ones hardly ever cover the
        truth when vectors are unreliable.
    order: None (Schwartz's), "swapped", or a permutation, see `values.circular_order`.
    layout: "equal" (steps) or "wedges" (nine; the values in the seventh and eighth place share one, which weights
        that side: centring then bends even a perfect circle a little; for the ten only).
    better_of: further candidates, say [("equal", "swapped"), ("wedges", None)]. The circle with the highest
        correspondence index is kept, and every p is over the best of all of them in each labelling.
    layer: of `Probes`; None for `probes.choose_layer()`, which looks at held-out accuracy only.
    labellings, seed: random labellings of more than ten values, whose orders are too many to enumerate.

    Raises WorkbenchError as `cosines` does, and for an unknown layout or order.
    """
    vectors, bootstrap, source = _given(vectors, bootstrap, layer, seed)
    asked = [(layout, order), *better_of]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in asked):
        raise WorkbenchError("The better of several circles was asked for.", found=f"better_of={better_of!r}",
                             allowed='(layout, order) pairs, say better_of=[("equal", "swapped")]')
    names = names_of(vectors, order)
    if names not in (VALUES, VALUES19) and len(asked) > 1:
        raise WorkbenchError("The better of several circles was asked for.", found=f"the values {', '.join(names)}",
                             allowed="the ten values, or the nineteen")
    candidates = tuple(dict.fromkeys(Circle(layout, circular_order(order, names)) for layout, order in asked))
    raw, reliability, drawn = None, None, ({}, {})
    d_model: int | None = None
    if given := isinstance(vectors, xr.DataArray) and "other" in vectors.dims:
        matrix = checked_matrix(vectors, names)
    else:
        array = checked(vectors, names)
        d_model = array.shape[1]
        matrix, raw = cosines(vectors, order=order), cosines(vectors, centred=False, order=order)
    circle = max(candidates, key=lambda candidate: compute_statistic("ci", matrix.values, candidate))
    resampled = bootstrap if hasattr(bootstrap, "halves") else None
    if resampled is not None or np.ndim(bootstrap) or bootstrap:
        if given or resampled is None and not np.ndim(bootstrap):
            raise WorkbenchError(
                "Bootstrap intervals of a circumplex fit were asked for.",
                found="a similarity matrix" if given else f"bootstrap={bootstrap!r}",
                allowed=f"Probes and a number, or vectors and resampled ones (resample, {len(names)}, d_model)",
                do="Resample the pairs of texts, fit the vectors again and pass them all: "
                   "probes.activations.resample(layer).")  # fmt: skip
        if resampled is not None:
            _check_same(array, checked(resampled.vectors, names), names)
            reliability = split_half(resampled.halves, names)
        again = bootstrap if resampled is None else resampled.bootstrap
        drawn = [dict(zip(("matrices", "mirrored"), resampled_matrices(again, array, centred, names), strict=True))
                 for centred in (True, False)]
    common: dict[str, Any] = {"d_model": d_model, "reliability": reliability, "resampled": resampled, "source": source,
              "labellings": labellings, "seed": seed}  # fmt: skip
    raw_fit = None if raw is None else CircumplexFit(raw, circle, candidates, **drawn[1], **common)
    return CircumplexFit(matrix, circle, candidates, raw_fit, **drawn[0], **common)


def _given(vectors: Any, bootstrap: Any, layer: int | None, seed: int) -> tuple[Any, Any, str]:
    """Vectors or matrix, bootstrap, and where they come from."""
    if hasattr(vectors, "choose_layer"):  # Probes; the type itself would import a model library here
        probes, chosen = vectors, layer is None
        layer = int(probes.choose_layer()) if layer is None else layer
        vectors = probes.vectors(layer) * probes.norms(layer)
        if isinstance(bootstrap, int) and bootstrap:
            if getattr(probes, "activations", None) is None:
                raise WorkbenchError(f"{bootstrap} resamples of the pairs of texts were asked for.",
                                     found="probes that were loaded from a file, without their activations",
                                     do="Fit them again on the pairs (wb.fit_probes), or pass a Resampled.")
            bootstrap = probes.activations.resample(layer, bootstrap, method=probes.method,
                                                    C=probes.provenance.get("C", 1.0), seed=seed)
        told = [probes.provenance.get("model"), probes.method, f"layer {layer}"]
        return vectors, bootstrap, ", ".join(filter(None, told)) + " chosen by held-out accuracy" * chosen
    if layer is not None:
        raise WorkbenchError(f"The fit at layer {layer} was asked for.", found=type(vectors).__name__,
                             allowed="layer= beside Probes", do="Pass the vectors of that layer, or the Probes.")
    if hasattr(vectors, "halves"):  # a Resampled
        bootstrap = bootstrap if np.ndim(bootstrap) or bootstrap else vectors
        vectors = vectors.vectors
    told = getattr(vectors, "attrs", {})
    at = vectors.coords["layer"].item() if "layer" in getattr(vectors, "coords", ()) else told.get("layer")
    return vectors, bootstrap, ", ".join(filter(None, [told.get("model"), told.get("method"),
                                                       None if at is None else f"layer {at}"]))


def _check_same(vectors: np.ndarray, fitted: np.ndarray, names: tuple[str, ...]) -> None:
    """WorkbenchError unless the resamples were drawn about these vectors, in these units: centring depends on both."""
    if vectors.shape != fitted.shape or np.abs(vectors - fitted).max() > 0.01 * np.linalg.norm(fitted, axis=1).max():
        raise WorkbenchError("Bootstrap intervals of a circumplex fit were asked for.",
                             found=f"resamples of other vectors {fitted.shape} than those fitted {vectors.shape}",
                             allowed="the same layer, method and length (raw, not unit vectors)",
                             do="Pass the Resampled alone: it holds its vectors.")


def layer_scan(vectors: Any, order: Order = None, layout: str = "equal", labellings: int = 19_999,
               seed: int = 0) -> pd.DataFrame:
    """The centred fit at every layer, and what is left of the best one once it is known to be the best.

    vectors: (layer, 10, d_model) array, or a DataArray with those dims (layer, value, d_model): `probes.weight` is one.
    Returns layer, ci, p (as if that layer had been named beforehand), p_selected (share of orders whose best
    layer does as well: to be quoted for a layer chosen by its fit), spearman, best (ties: the later layer).
    """
    names = names_of(vectors, order)
    array = checked(vectors, names, "layer")
    matrices = cosine_matrices(array, True, names)
    named = isinstance(vectors, xr.DataArray) and "layer" in vectors.coords
    circle = Circle(layout, circular_order(order, names))
    table = pd.DataFrame({"layer": vectors["layer"].values if named else range(len(matrices))})
    table["ci"] = compute_statistic("ci", matrices, circle)
    null = null_distribution("ci", matrices, [circle], labellings, seed)
    for name, share in (("p", null), ("p_selected", np.broadcast_to(null.max(0), null.shape))):
        table[name] = [share_at_least(row, ci) for row, ci in zip(share, table["ci"], strict=True)]
    table["spearman"] = compute_statistic("spearman", matrices, circle)
    return table.assign(best=table.index == max(table.index, key=lambda row: (table["ci"][row], row)))
