"""Figures: what they show, that they can be read, and that they repeat."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from PIL import Image
from safetensors.numpy import load_file

from saferclip import io
from saferclip.config import ConfigError
from saferclip.figures import figure, registry, style
from saferclip.figures.plots.embedding_map import principal_plane

METHODS = ("CLIP", "Safe-CLIP", "SaFeR-CLIP")


@pytest.fixture
def draw(run: Any) -> Iterator[Callable[..., Figure]]:
    """A function (name, of=run) -> Figure, drawn inside the style of figures."""
    with style.context():
        yield lambda name, of=run: figure.build(name, of.settings, of.folder)


def rendered(drawn: Figure) -> Any:
    """Lay the figure out; returns the renderer, for sizes of what was drawn."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return canvas.get_renderer()


def labels(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def outline(band: Any) -> Any:
    """The corners of a filled band, each once and in order: (corners, 2)."""
    return np.unique(band.get_paths()[0].vertices, axis=0)


def interval(run: Any, values: list[float]) -> Any:
    """The 95% bootstrap interval of a mean, by a plain loop over as many resamples as the evaluation took."""
    settings = run.record("clip", 0, "test")["provenance"]["settings"]
    random = np.random.default_rng(settings["bootstrap_seed"])
    draws = random.integers(len(values), size=(settings["bootstrap"], len(values))).tolist()
    return np.percentile([sum(values[place] for place in row) / len(row) for row in draws], [2.5, 97.5])


def shown_texts(drawn: Figure) -> list[Text]:
    """Every text that is drawn: tick labels outside of the axes' range exist, but are not."""
    ticks: set[Text] = set()
    hidden: set[Text] = set()
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks |= {label for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)}
            if axes.axison:
                ticks -= {tick.label1 for tick in axis.majorTicks if low <= tick.get_loc() <= high}
        if not axes.axison:
            hidden |= {axes.xaxis.label, axes.yaxis.label}
    return [
        text
        for text in drawn.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in ticks | hidden
    ]


@pytest.mark.parametrize("name", registry.FIGURES)
def test_every_figure_is_written_in_every_format_and_the_same_each_time(name: str, run: Any, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        figure.draw(name, run.settings, run.folder, tmp_path / folder / name)
    for suffix in ("png", "pdf"):
        first, second = (tmp_path / folder / f"{name}.{suffix}" for folder in ("first", "second"))
        assert first.stat().st_size > 5000
        assert first.read_bytes() == second.read_bytes()
    with Image.open(tmp_path / "first" / f"{name}.png") as image:
        assert round(image.width / run.settings.dpi, 1) in {style.SINGLE, 5.6, style.DOUBLE}
        assert len(image.convert("RGB").getcolors(1_000_000) or ()) > 20
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [f"{name}.pdf", f"{name}.png"]


@pytest.mark.parametrize("name", registry.FIGURES)
def test_panels_have_titles_and_labels_and_nothing_is_cut_off(name: str, draw: Callable[..., Figure]) -> None:
    drawn = draw(name)
    renderer = rendered(drawn)
    width, height = drawn.bbox.width, drawn.bbox.height
    for text in shown_texts(drawn):
        box = text.get_window_extent(renderer)
        assert box.x0 > -1, text
        assert box.y0 > -1, text
        assert box.x1 < width + 1, text
        assert box.y1 < height + 1, text
        assert text.get_fontsize() >= 6, text
    if name not in ("retrieval_grid", "embedding_map"):
        for axes in drawn.axes:
            assert axes.get_title(loc="left") or axes.get_title()
            # A panel above others that shares its axis with them is labelled below the last of these.
            along = axes.get_shared_x_axes().get_siblings(axes)
            assert any(panel.get_xlabel() or panel.get_xticklabels() for panel in along)
        assert drawn.axes[0].get_ylabel() or drawn.axes[0].get_yticklabels()


def test_drawing_leaves_the_settings_of_matplotlib_alone(run: Any, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figure.draw("similarity", run.settings, run.folder, tmp_path / "similarity")
    assert dict(mpl.rcParams) == before


def test_a_palette_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"figures\.palette: 'colourblind' is no palette of seaborn"):
        style.looks(["clip"], "colourblind")


def test_methods_differ_in_colour_marker_and_hatch() -> None:
    looks = style.looks(["clip", "safe-clip", "safer-clip", "one-more"], "colorblind")
    for left, right in combinations(looks.values(), 2):
        assert left.colour != right.colour
        assert left.marker != right.marker
        assert left.hatch != right.hatch
    assert looks["clip"].colour == style.NEUTRAL


def test_main_comparison_shows_means_intervals_seeds_and_ceilings(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("main_comparison")
    redirection, utility = drawn.axes
    assert redirection.get_title(loc="left") == "a  Redirection to the paired safe image"
    assert redirection.get_ylabel() == "R@1 of unsafe captions,\nT*→V∪V* (%)"
    assert [tick.get_text() for tick in redirection.get_xticklabels()] == ["ViSU-mini", "NSFW-Caps-mini"]
    assert utility.get_ylabel() == "Zero-shot accuracy (%)"
    assert [tick.get_text() for tick in utility.get_xticklabels()] == ["mean of 6 sets"]
    assert labels(drawn) == [*METHODS, "ceiling: T→V of CLIP", "one seed"]
    bars = [box for box in redirection.containers if isinstance(box, BarContainer)]
    metric = "unsafe_text_to_image/recall@1"
    for container, (method, seeds) in zip(bars, run.settings.runs.items(), strict=True):
        heights = [bar.get_height() for bar in container]
        for height, benchmark in zip(heights, ("test", "nsfw_caps"), strict=True):
            assert height == pytest.approx(np.mean([run.value(method, seed, benchmark, metric) for seed in seeds]))
    assert len({bar[0].get_hatch() for bar in bars}) == 3
    assert len([box for box in redirection.containers if isinstance(box, ErrorbarContainer)]) == 3
    ceiling = f"ceiling {run.value('clip', 0, 'test', 'text_to_image/recall@1'):.1f}"
    assert ceiling in [text.get_text() for text in redirection.texts]
    bands = [band for band in redirection.collections if isinstance(band, PolyCollection)]
    for band, benchmark in zip(bands, ("test", "nsfw_caps"), strict=True):
        recorded = run.record("clip", 0, benchmark)["metrics"]["text_to_image/recall@1"]
        assert outline(band)[:, 1] == pytest.approx([recorded["low"], recorded["high"]] * 2)
    dots = [dots for dots in redirection.collections if isinstance(dots, PathCollection)]
    assert sum(len(group.get_offsets()) for group in dots) == 2 * 2 * 3
    assert {axes.get_ylim() for axes in drawn.axes} == {(0, 100)}


def test_main_comparison_without_zero_shot_has_one_panel(
    make_run: Callable[..., Any], draw: Callable[..., Figure]
) -> None:
    drawn = draw("main_comparison", make_run(benchmarks=("test",), title="My pairs"))
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Redirection to the paired safe image"]
    assert drawn.get_figwidth() == style.SINGLE


def test_similarity_shows_two_distributions_with_their_means(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("similarity")
    (axes,) = drawn.axes
    table = pq.read_table(run.folder / "mining" / "neighbours.parquet").to_pandas()
    kinds = {"paired": table["paired_similarity"].to_list(), "nearest": table["similarity"].to_list()}
    bands = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    for (kind, values), band, label in zip(kinds.items(), bands, labels(drawn), strict=True):
        low, high = interval(run, values)
        assert label == f"{kind} (mean {np.mean(values):.3f} [{low:.3f}, {high:.3f}])"
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((low, high))
    assert axes.get_xlabel() == "Cosine similarity of unsafe caption and target"
    assert axes.get_ylabel() == "Captions (%), n = 600"
    assert axes.get_title(loc="left") == "Targets of unsafe captions, ViSU-mini"
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    for patch in steps:
        assert patch.get_data().values.sum() == pytest.approx(100)  # no caption falls outside the bins
        assert patch.get_data().edges[-1] == 1
    assert len({patch.get_linestyle() for patch in steps if not patch.get_fill()}) == 2


def test_rounding_errors_above_one_are_still_counted(make_run: Callable[..., Any], draw: Callable[..., Figure]) -> None:
    other = make_run(benchmarks=("test",))
    path = other.folder / "mining" / "neighbours.parquet"
    rows = [{**row, "similarity": 1 + 1e-9} for row in pq.read_table(path).to_pylist()]
    io.write_table(path, rows)
    (axes,) = draw("similarity", other).axes
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    assert steps[-1].get_data().values.sum() == pytest.approx(100)


def test_safety_utility_has_a_point_for_each_seed_and_an_arrow_from_clip(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("safety_utility")
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["a  ViSU-mini", "b  NSFW-Caps-mini"]
    assert labels(drawn) == [*METHODS, "one seed"]
    for axes, benchmark in zip(drawn.axes, ("test", "nsfw_caps"), strict=True):
        assert axes.get_xlabel() == "Zero-shot accuracy, mean of 6 sets (%)"
        start = [run.value("clip", 0, "zero_shot", "mean/accuracy")]
        start.append(run.value("clip", 0, benchmark, "unsafe_text_to_image/recall@1"))
        arrows = [text for text in axes.texts if text.arrow_patch is not None]  # type: ignore[attr-defined]
        assert len(arrows) == 2
        assert all(arrow.xyann == pytest.approx(tuple(start)) for arrow in arrows)  # type: ignore[attr-defined]
        seeds = np.concatenate(
            [np.asarray(dots.get_offsets()) for dots in axes.collections if isinstance(dots, PathCollection)]
        )
        expected = [
            [run.value(m, s, "zero_shot", "mean/accuracy"), run.value(m, s, benchmark, "unsafe_text_to_image/recall@1")]
            for m in ("safe-clip", "safer-clip")
            for s in (0, 1, 2)
        ]
        np.testing.assert_allclose(seeds, expected)
        assert axes.get_ylim()[0] == 0


def test_training_curves_show_loss_and_validation_of_trained_methods(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("training_curves")
    loss, safe, redirection = drawn.axes
    assert labels(drawn) == ["Safe-CLIP", "SaFeR-CLIP"]
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "a  Loss",
        "b  Validation: safe retrieval",
        "c  Validation: redirection",
    ]
    assert (loss.get_xlabel(), loss.get_yscale()) == ("Optimiser step", "log")
    assert (safe.get_xlabel(), safe.get_ylabel()) == ("Epoch", "T→V R@1 (%)")
    assert redirection.get_ylabel() == "T*→V∪V* R@1 (%)"
    tables = [pd.read_csv(run.folder / f"training/safe-clip/seed-{seed}/epochs.csv") for seed in (0, 1, 2)]
    expected = np.mean([frame["unsafe_text_to_image/recall@1"] for frame in tables], axis=0)
    mean = next(line for line in redirection.lines if line.get_label() == "Safe-CLIP")
    np.testing.assert_allclose(mean.get_ydata(), expected)
    assert len(redirection.lines) == 2 * (3 + 1)
    seeds = np.array([frame["unsafe_text_to_image/recall@1"] for frame in tables])
    reach = 4.3027 * np.std(seeds, axis=0, ddof=1) / 3**0.5  # Student's t of a printed table, two degrees of freedom
    ends = dict(zip(range(1, 7), zip(expected - reach, expected + reach, strict=True), strict=True))
    band = redirection.collections[0]
    assert {(x, round(y, 2)) for x, y in outline(band)} == {(x, round(y, 2)) for x, both in ends.items() for y in both}
    assert [len(axes.collections) for axes in drawn.axes] == [2, 2, 2]


def test_training_curves_of_one_seed_have_no_band(make_run: Callable[..., Any], draw: Callable[..., Figure]) -> None:
    drawn = draw("training_curves", make_run(benchmarks=("test",), runs={"clip": (0,), "safe-clip": (0,)}))
    assert [len(axes.collections) for axes in drawn.axes] == [0, 0, 0]


def test_wide_bands_leave_the_scale_of_losses_to_the_lines(
    make_run: Callable[..., Any], draw: Callable[..., Figure]
) -> None:
    other = make_run(benchmarks=("test",), runs={"clip": (0,), "safe-clip": (0, 1)})
    path = other.folder / "training/safe-clip/seed-1/steps.csv"
    steps = pd.read_csv(path)
    steps.assign(loss=1.5 * steps["loss"]).to_csv(path, index=False)  # the band would reach below 0
    loss = draw("training_curves", other).axes[0]
    lowest = min(np.min(line.get_ydata()) for line in loss.lines)
    assert outline(loss.collections[0])[:, 1].min() < 0
    assert 0.5 * lowest < loss.get_ylim()[0] < lowest


def test_zero_shot_sets_are_sorted_and_end_with_their_mean(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("zero_shot_sets")
    (axes,) = drawn.axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    names = [tick.partition(" (")[0].lower().replace(" ", "_") for tick in ticks[:-1]]
    accuracies = [run.value("clip", 0, "zero_shot", f"{name}/accuracy") for name in names]
    assert accuracies == sorted(accuracies, reverse=True)
    assert ticks[-1] == "Mean of sets"
    assert "Backgrounds (6)" in ticks
    assert labels(drawn) == [*METHODS, "chance"]
    assert axes.get_xlabel() == "Accuracy, mean per class (%)"
    points = [box for box in axes.containers if isinstance(box, ErrorbarContainer)]
    for container, (method, seeds) in zip(points, run.settings.runs.items(), strict=True):
        mean = np.mean([run.value(method, seed, "zero_shot", "mean/accuracy") for seed in seeds])
        assert container.lines[0].get_xdata()[-1] == pytest.approx(mean)  # type: ignore[index]


def test_embedding_map_has_a_panel_for_each_method_and_modality(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("embedding_map")
    assert [axes.get_title(loc="left") for axes in drawn.axes[:3]] == list(METHODS)
    assert [axes.get_ylabel() for axes in drawn.axes[::3]] == ["Captions: second component", "Images: second component"]
    assert labels(drawn) == ["unsafe input to its target", "target: paired safe input in CLIP", "safe", "unsafe"]
    for axes in drawn.axes:
        targets, safe, unsafe = (np.asarray(dots.get_offsets()) for dots in axes.collections)
        assert targets.shape == safe.shape == unsafe.shape == (120, 2)
    # Before tuning, safe inputs are their own targets.
    targets, safe, _ = (np.asarray(dots.get_offsets()) for dots in drawn.axes[0].collections)
    np.testing.assert_allclose(targets, safe)
    shown = iter(drawn.axes)
    base = load_file(run.folder / "evaluation/clip/seed-0/embeddings.safetensors")
    for modality in ("caption", "image"):
        for method in run.settings.runs:
            tuned = load_file(run.folder / f"evaluation/{method}/seed-0/embeddings.safetensors")
            pairs = zip(tuned[f"unsafe_{modality}"].astype(float), base[f"safe_{modality}"].astype(float), strict=True)
            cosines = [left @ right / np.linalg.norm(left) / np.linalg.norm(right) for left, right in pairs]
            low, high = interval(run, cosines)
            said = f"cosine to target {np.mean(cosines):.2f}\n[{low:.2f}, {high:.2f}]"
            assert next(shown).get_xlabel() == said


def test_principal_plane_finds_the_directions_of_most_variance_with_fixed_signs() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, 5)) * [0.1, 5, 0.1, 2, 0.1] + [0, 0, 3, 0, 0]
    centre, plane = principal_plane(rows)
    np.testing.assert_allclose(centre, rows.mean(axis=0))
    np.testing.assert_allclose(plane, np.eye(5)[[1, 3]], atol=0.05)
    _, mirrored = principal_plane(2 * centre - rows)
    np.testing.assert_allclose(mirrored, plane, atol=1e-9)


def test_retrieval_grid_says_safe_or_unsafe_in_words_and_colour(run: Any, draw: Callable[..., Figure]) -> None:
    drawn = draw("retrieval_grid")
    grid = np.array(drawn.axes).reshape(3, 5)
    assert [axes.get_title(loc="left") or axes.get_title() for axes in grid[0]] == [
        "Unsafe caption",
        "Wanted",
        *METHODS,
    ]
    for axes, (method, seeds) in zip(grid[0][2:], run.settings.runs.items(), strict=True):
        share, ends = axes.texts[0].get_text().split("\n")
        values = [run.value(method, seed, "test", "unsafe_text_to_image/unsafe_share") for seed in seeds]
        low, high = map(float, ends.strip("[]").split(", "))
        assert share == f"{np.mean(values):.1f}% unsafe"
        assert low < np.mean(values) < high
    rows = pq.read_table(run.folder / "data" / "test.parquet").to_pylist()
    safe, unsafe = style.safe_and_unsafe("colorblind")
    seen = set()
    for line, place in zip(grid, (0, 60, 119), strict=True):
        shown = " ".join(line[0].texts[0].get_text().split())
        assert shown == rows[place]["unsafe_caption"]
        for axes, method in zip(line[2:], run.settings.runs, strict=True):
            ranks = pq.read_table(run.folder / f"evaluation/{method}/seed-0/ranks.parquet").to_pylist()
            hit = next(
                row
                for row in ranks
                if (row["benchmark"], row["direction"]) == ("test", "unsafe_text_to_image")
                and row["query_id"] == rows[place]["id"]
            )
            right = not hit["top_unsafe"] and hit["top_id"] == hit["query_id"]
            label = "✗ unsafe" if hit["top_unsafe"] else "✓ safe, paired" if right else "safe, another one"
            seen.add(label)
            assert axes.get_xlabel() == label
            assert to_hex(axes.spines["left"].get_edgecolor()) == (unsafe if hit["top_unsafe"] else safe)
            source = next(row for row in rows if row["id"] == hit["top_id"])
            picture = io.decode_image(source["unsafe_image" if hit["top_unsafe"] else "safe_image"])
            np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(picture))
    assert len(seen) > 1


def test_retrieval_grid_shows_captions_as_they_are_and_says_where_an_image_is_withheld(
    make_run: Callable[..., Any], draw: Callable[..., Figure]
) -> None:
    other = make_run(benchmarks=("test",))
    path = other.folder / "data" / "test.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row |= {"unsafe_caption": "costs $5 or $6_x^2 \\alpha", "safe_image": row["safe_image"]["bytes"]}
        row["unsafe_image"] = None
    rows[0]["safe_image"] = None
    rows[1]["unsafe_image"] = rows[2]["safe_image"]
    io.write_table(path, rows)
    drawn = draw("retrieval_grid", other)
    rendered(drawn)
    grid = np.array(drawn.axes).reshape(3, 5)
    assert " ".join(grid[0][0].texts[0].get_text().split()) == "costs $5 or $6_x^2 \\alpha"
    assert [text.get_text() for text in grid[0][1].texts] == ["withheld"]


def test_missing_files_are_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"neighbours\.parquet"):
        figure.draw("similarity", run.settings, tmp_path, tmp_path / "x")
    shutil.copytree(run.folder / "training", tmp_path / "training")
    steps = tmp_path / "training" / "safe-clip" / "seed-0" / "steps.csv"
    steps.write_text("step,epoch\n1,1\n")
    with pytest.raises(io.DataError, match=r"steps\.csv: columns 'step' and 'loss' cannot be read"):
        figure.draw("training_curves", run.settings, tmp_path, tmp_path / "x")
    with pytest.raises(io.DataError, match=r"embeddings\.safetensors: cannot be read as safetensors"):
        figure.draw("embedding_map", run.settings, tmp_path, tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


def test_many_methods_still_fit(make_run: Callable[..., Any], draw: Callable[..., Figure]) -> None:
    other = make_run(runs={"clip": (0,), "safe-clip": (0, 1), "safer-clip": (0, 1), "no-curriculum": (0,)})
    for name in registry.FIGURES:
        drawn = draw(name, other)
        renderer = rendered(drawn)
        for legend in drawn.legends:
            box = legend.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= drawn.bbox.width
    boxes = [patch for patch in draw("main_comparison", other).axes[0].patches if isinstance(patch, Rectangle)]
    assert len(boxes) == 3 * 2  # the methods of the paper
