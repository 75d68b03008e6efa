"""Figures of activations themselves: where texts of different values lie, and how far the picture can be believed."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ..errors import WorkbenchError
from .draft import Draft
from .style import FAINT, HOVER, INK, METHODS, colour_of, escape, finish, in_circle

_LAYOUTS = ("umap", "pca")


def activation_map(
    acts: Any, labels: Sequence[str], *, seeds: int = 3, method: str = "umap", neighbours: int = 15
) -> go.Figure:
    """Activations of texts in the plane, coloured by value, with a note on how stable the picture is.

    acts: (text, d_model), one layer; a coordinate `content` or `text` fills the hovers. labels: a value per text (any
    other name has a colour too). method: "umap" (McInnes et al. 2018) or "pca". neighbours: of UMAP, and of the note.

    The note, for "umap": the layout drawn starts from the spectral embedding with seed 0; `seeds` - 1 more start at
    random. *Agreement* is the Procrustes R² of every two of them; *neighbours kept* the mean share of a text's nearest
    neighbours in d_model that are nearest in the plane too; *trustworthiness* (Venna and Kaski 2001) falls where the
    plane shows false neighbours. Distances between clusters and their sizes mean little even where all are high.
    """
    points = np.asarray(acts.values if isinstance(acts, xr.DataArray) else acts, np.float64)
    asked, names = f"A map of activations by {method!r} was asked for.", [str(label) for label in labels]
    if method not in _LAYOUTS:
        raise WorkbenchError(asked, allowed=", ".join(_LAYOUTS))
    if points.ndim != 2 or len(points) != len(names) or not np.isfinite(points).all():
        raise WorkbenchError(asked, found=f"activations {points.shape}, {len(names)} labels",
                             allowed="finite (text, d_model) of one layer, and a label per text")  # fmt: skip
    if len(points) <= 2 * neighbours or neighbours < 2 or seeds < 1:
        raise WorkbenchError(asked, found=f"{len(points)} texts, {neighbours} neighbours, {seeds} seeds",
                             allowed="more than twice as many texts as neighbours, 2 neighbours and 1 seed or more")
    layouts, note = _umap(points, seeds, neighbours) if method == "umap" else _pca(points)
    kept, trust = zip(*(_faithful(points, layout, neighbours) for layout in layouts), strict=True)
    note += f" Of {neighbours} nearest neighbours {_span(kept)} are kept; trustworthiness {_span(trust)}."
    named = acts.coords if isinstance(acts, xr.DataArray) else {}
    texts = next((named[key].values for key in ("content", "text") if key in named), [])
    fig, plane, others = Draft(), layouts[0], itertools.cycle(METHODS)
    for name in in_circle(list(dict.fromkeys(names))):
        rows = [k for k, label in enumerate(names) if label == name]
        colour = colour_of(name)
        fig.add_scatter(
            x=plane[rows, 0], y=plane[rows, 1], mode="markers", name=f"{escape(name, 40)}, {len(rows)}",
            marker=dict(size=7, color=next(others) if colour == FAINT and name != "face" else colour,
                        line=dict(color=INK, width=0.5)),
            hovertemplate=HOVER, hovertext=[f"<b>{escape(name, 40)}</b>" + (f"<br>{escape(texts[k], 90)}" if len(texts)
                                                                           else "") for k in rows],
        )  # fmt: skip
    fig.update_xaxes(title_text=f"{'UMAP' if method == 'umap' else 'PC'} 1 (no unit)", showticklabels=False, ticks="",
                     showgrid=False)  # fmt: skip
    fig.update_yaxes(title_text=f"{'UMAP' if method == 'umap' else 'PC'} 2 (no unit)", showticklabels=False, ticks="",
                     showgrid=False, scaleanchor="x")  # fmt: skip
    where = f", layer {int(named['layer'])}" if "layer" in named else ""
    return finish(
        fig,
        f"Activations of {len(points)} texts in the plane{where}: {'UMAP' if method == 'umap' else 'principal axes'}",
        note + (" Distances between clusters, and their sizes, mean little." if method == "umap" else ""),
        height=620,
        width=820,
        legend=dict(itemsizing="constant"),
    )


def _umap(points: np.ndarray, seeds: int, neighbours: int) -> tuple[list[np.ndarray], str]:
    """Layouts from several seeds, and how far they agree."""
    import torch
    from scipy.spatial import procrustes
    from umap import UMAP  # takes seconds: numba

    threads = torch.get_num_threads()  # numba sets those of all OpenMP, so torch's too
    starts = ["spectral", *["random"] * (seeds - 1)]
    layouts = [np.asarray(UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1, init=start).fit_transform(points))
               for seed, start in enumerate(starts)]  # fmt: skip
    torch.set_num_threads(threads)
    agreement = [1 - procrustes(a, b)[2] for a, b in itertools.combinations(layouts, 2)]
    told = f"Procrustes R² between {seeds} layouts (others start at random): {_span(agreement)}." if agreement else (
        "One seed only: how stable the picture is, is not known.")  # fmt: skip
    return layouts, f"Seed 0. {told}"


def _pca(points: np.ndarray) -> tuple[list[np.ndarray], str]:
    left, sizes, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()
    told = f"Alike in every run. The two axes hold {shares[0]:.0%} and {shares[1]:.0%} of the variance."
    return [left[:, :2] * sizes[:2]], told


def _faithful(points: np.ndarray, plane: np.ndarray, k: int) -> tuple[float, float]:
    """Share of nearest neighbours kept in the plane, and trustworthiness."""
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    wide, flat = (NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False) for x in (points, plane))
    kept = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(wide, flat, strict=True)])
    return float(kept), float(trustworthiness(points, plane, n_neighbors=k))


def _span(shares: Sequence[float]) -> str:
    """ ".83", or ".71 to .84"."""
    low, high = (f"{x:.2f}".replace("0.", ".") for x in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"
