"""Where safe and unsafe inputs lie before and after fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.numpy import load_file

from saferclip import io, statistics
from saferclip.config import FigureSettings
from saferclip.figures import layout, paper, style
from saferclip.figures.results import Array, Estimate, Results

MODALITIES = {"caption": "Captions", "image": "Images"}
CONNECTED = 12  # unsafe inputs that a line joins to their target


def draw(results: Results, settings: FigureSettings) -> Figure:
    """A row for each modality, a column for each method; the axes are those of the base model.

    Redirection should carry the unsafe points to their targets: where the base model puts the
    paired safe inputs.
    """
    embeddings = {method: _read(results, method) for method in results.methods}
    base = embeddings["clip"]
    # Embeddings of another space have no place among CLIP's, and are not handed over.
    embeddings = {method: tensors for method, tensors in embeddings.items() if tensors or method == "clip"}
    # Where images are withheld there are captions alone; where captions are hardly any, no plane.
    shown = {modality: title for modality, title in MODALITIES.items() if len(base.get(f"safe_{modality}", ())) > 1}
    if not shown:
        return style.nothing()
    figure = style.new(style.DOUBLE, 0.4 + 2.0 * len(shown))
    panels = figure.subplots(len(shown), len(embeddings), squeeze=False, sharex="row", sharey="row")
    for row, (modality, title) in zip(panels, shown.items(), strict=True):
        targets = base[f"safe_{modality}"]
        centre, directions = principal_plane(np.concatenate([targets, base[f"unsafe_{modality}"]]))
        for axes, tensors in zip(row, embeddings.values(), strict=True):
            safe, unsafe = tensors[f"safe_{modality}"], tensors[f"unsafe_{modality}"]
            flat = {"targets": targets, "safe": safe, "unsafe": unsafe}
            _panel(axes, {kind: (part - centre) @ directions.T for kind, part in flat.items()}, settings)
            axes.set_xlabel(_said(results, (unsafe * targets).sum(axis=1)))
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{title}: second component")
    for axes, method in zip(panels[0], embeddings, strict=True):
        axes.set_title(paper.method_title(method))
    figure.supxlabel("First principal component of CLIP's embeddings", fontsize="medium")
    handles, labels = panels[0][0].get_legend_handles_labels()
    for handle in style.legend(figure, handles, labels).legend_handles:
        handle.set_alpha(1)  # type: ignore[union-attr]
    return figure


def principal_plane(rows: Array) -> tuple[Array, Array]:
    """Mean (dim,) and the two directions (2, dim) of largest variance; signs are fixed, so maps repeat."""
    centre = rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows - centre, full_matrices=False)
    plane = directions[:2]
    largest = np.abs(plane).argmax(axis=1)
    return centre, plane * np.sign(plane[[0, 1], largest])[:, None]


def _said(results: Results, cosines: Array) -> str:
    """The mean cosine of unsafe inputs to their targets, from that of each (inputs,), with its interval."""
    mean, low, high = statistics.bootstrap_interval(cosines, results.resamples, results.seed)
    said, _, interval = layout.parts(Estimate(mean, None, low, high), digits=2)
    return f"cosine to target {said}\n{interval}"


def _panel(axes: Axes, points: dict[str, Array], settings: FigureSettings) -> None:
    """Points are of shape (inputs, 2); row by row they belong together."""
    safe_colour, unsafe_colour = style.safe_and_unsafe(settings.palette)
    (tx, ty), (sx, sy), (ux, uy) = (points[kind].T for kind in ("targets", "safe", "unsafe"))
    some = slice(None, CONNECTED)
    lines = axes.plot([ux[some], tx[some]], [uy[some], ty[some]], color="black", linewidth=0.4, alpha=0.6, zorder=1)
    lines[0].set_label("unsafe input to its target")
    axes.scatter(
        tx, ty, s=9, facecolor="none", edgecolor="#8c8c8c", linewidth=0.5, label="target: paired safe input in CLIP"
    )
    axes.scatter(sx, sy, s=5, color=safe_colour, alpha=0.75, linewidth=0, label="safe")
    axes.scatter(ux, uy, s=8, marker="x", color=unsafe_colour, alpha=0.8, linewidth=0.7, label="unsafe")
    style.tidy(axes, grid="both")


def _read(results: Results, method: str) -> dict[str, Array]:
    """Embeddings of a method's first seed, as unit rows in float64."""
    path: Path = results.folder / "evaluation" / method / f"seed-{results.runs[method][0]}" / "embeddings.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise io.DataError(f"{path}: cannot be read as safetensors: {error}") from error
    columns = [f"{kind}_{modality}" for kind in ("safe", "unsafe") for modality in MODALITIES]
    wide = {name: tensors[name].astype(np.float64) for name in columns if name in tensors}
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in wide.items()}
