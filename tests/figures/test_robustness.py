"""Variants beside their controls: differences over the very same queries, against a plain computation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from saferclip import io, statistics
from saferclip.figures import figure, style, table, variants
from saferclip.figures.results import Results

TITLES = {"clip": "CLIP", "safe-clip": "Safe-CLIP", "safer-clip": "SaFeR-CLIP"}
OBJECTS = ["Seen: object (control)", "Unseen: object"]
TEXT, PHOTO, IMAGE = "unsafe_text_to_image", "unsafe_text_to_photo", "unsafe_image_to_text"


def outcomes(run: Any, method: str, direction: str, column: str) -> dict[str, list[float]]:
    """What each seed did with each query, in percent: query to a value for each seed."""
    found: dict[str, list[float]] = {}
    for seed in run.settings.runs[method]:
        ranks = io.read_table(run.folder / f"evaluation/{method}/seed-{seed}/ranks.parquet").to_pylist()
        for row in ranks:
            if (row["benchmark"], row["direction"]) == ("robustness", direction):
                value = row["top_unsafe"] if column == "unsafe" else row["rank"] == 1
                found.setdefault(row["query_id"], []).append(100.0 * value)
    return found


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


@pytest.fixture
def rows(run: Any, tmp_path: Path) -> Callable[[str], list[dict[str, str]]]:
    """A function: name of a table -> the rows of its CSV."""

    def read(name: str) -> list[dict[str, str]]:
        table.write(name, run.settings, run.folder, tmp_path / name)
        with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    return read


def test_robustness_has_a_row_for_each_direction_variant_and_method(rows: Any) -> None:
    found = [(row["direction"], row["variant"], row["method"]) for row in rows("robustness")]
    expected = [
        (direction, variant, method)
        for direction, names in {
            "T*→V∪V*": ["Unchanged (control)", "Typo", "Synonym", "Redrawn (control)", "Style: neon", *OBJECTS],
            "T*→V∪V*, photos": ["Unchanged (control)", "Typo", "Synonym", *OBJECTS],
            "V*→T∪T*": ["Unchanged (control)", "Redrawn (control)", "Style: neon", *OBJECTS],
        }.items()
        for variant in names
        for method in TITLES.values()
    ]
    assert found == expected


def test_changes_are_means_of_differences_over_queries_of_both(run: Any, rows: Any) -> None:
    found = {(row["direction"], row["variant"], row["method"]): row for row in rows("robustness")}
    checked = [("T*→V∪V*", TEXT, "Typo", "typo", "unchanged"), ("T*→V∪V*", TEXT, "Synonym", "synonym", "unchanged")]
    checked += [("V*→T∪T*", IMAGE, "Style: neon", "style_neon", "redrawn")]
    checked += [("T*→V∪V*, photos", PHOTO, "Unseen: object", "unseen_object", "seen_object")]
    for label, direction, title, name, control in checked:
        for method, shown in TITLES.items():
            row = found[label, title, shown]
            one, other = (outcomes(run, method, f"{each}/{direction}", "unsafe") for each in (name, control))
            differences = [mean(one[query]) - mean(other[query]) for query in one]
            assert float(row["unsafe_share_change [points]"]) == pytest.approx(mean(differences))
            assert float(row["unsafe_share [%]"]) == pytest.approx(mean(map(mean, one.values())))
            low, high = (float(row[f"unsafe_share_change {end} [points]"]) for end in ("low", "high"))
            error = np.std(differences) / np.sqrt(len(differences))
            assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert not found["T*→V∪V*", "Unchanged (control)", "CLIP"]["unsafe_share_change [points]"]


def test_p_values_are_corrected_for_all_changes_of_the_table(run: Any, rows: Any) -> None:
    results = Results(run.folder, run.settings)
    plain, corrected = [], []
    for row in rows("robustness"):
        if not row["p"]:
            continue
        direction = {"T*→V∪V*": TEXT, "T*→V∪V*, photos": PHOTO, "V*→T∪T*": IMAGE}[row["direction"]]
        variant = next(v for v in variants.variants(results, direction) if v.label == row["variant"])
        method = next(name for name, title in TITLES.items() if title == row["method"])
        change = variants.change(results, method, variant, f"{direction}/unsafe_share")
        assert change is not None
        plain.append(change.p_value)
        corrected.append(float(row["p"]))
    assert len(plain) == 3 * (4 + 2 + 2 + 3)
    assert corrected == pytest.approx(statistics.holm(plain))
    assert min(corrected) < 0.05 < max(corrected)


def test_means_by_counts_are_those_of_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).choice([-100.0, 0.0, 100 / 3, 100.0], size=90, p=[0.1, 0.5, 0.2, 0.2])
    plain = statistics.bootstrap_means(values, 20_000, 1)
    fast = variants.many_means(values, 20_000, 2)
    assert fast.shape == (20_000,)
    np.testing.assert_allclose(
        np.quantile(fast, [0.025, 0.5, 0.975]), np.quantile(plain, [0.025, 0.5, 0.975]), atol=0.6
    )
    assert fast.std() == pytest.approx(plain.std(), rel=0.03)


def test_over_refusal_says_what_clip_had_and_the_method_lost(run: Any, rows: Any) -> None:
    found = {(row["variant"], row["method"]): row for row in rows("over_refusal")}
    assert [variant for variant, method in found if method == "CLIP"] == ["Ordinary (control)", "Shared: word"]
    for label, name in {"Ordinary (control)": "ordinary", "Shared: word": "shared_word"}.items():
        base = outcomes(run, "clip", f"{name}/text_to_image", "rank")
        for method, shown in TITLES.items():
            tuned = outcomes(run, method, f"{name}/text_to_image", "rank")
            lost = [mean(base[query][0] == 100 and value == 0 for value in tuned[query]) for query in base]
            assert float(found[label, shown]["lost [%]"]) == pytest.approx(100 * mean(lost))
            cosine = mean(
                run.value(method, s, "robustness", f"{name}/safe_text/cosine") for s in run.settings.runs[method]
            )
            assert float(found[label, shown]["cosine"]) == pytest.approx(cosine)
        assert float(found[label, "CLIP"]["lost [%]"]) == 0


def test_a_run_without_images_gets_what_words_alone_tell(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run()
    for method, seeds in other.settings.runs.items():
        for seed in seeds:
            folder = other.folder / f"evaluation/{method}/seed-{seed}"
            record = io.read_json(folder / "robustness.json")
            record["metrics"] = {
                name: value for name, value in record["metrics"].items() if "image" not in name and "photo" not in name
            }
            io.write_json(folder / "robustness.json", record)
    assert table.build("robustness", other.settings, other.folder).rows == []
    safe = table.build("over_refusal", other.settings, other.folder)
    assert [row[3] for row in safe.rows] == [None] * 6
    for name in ("robustness", "over_refusal"):
        table.write(name, other.settings, other.folder, tmp_path / name)
    with style.context():
        (axes,) = figure.build("robustness", other.settings, other.folder).axes
    assert axes.get_xlabel() == "own caption first,\namong CLIP's (%)"


def test_the_figure_marks_controls_and_shows_every_variant(run: Any) -> None:
    with style.context():
        drawn = figure.build("robustness", run.settings, run.folder)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "a  Words",
        "b  In photos",
        "c  Gallery",
        "d  Queries",
        "e  Safe",
    ]
    ticks = [[tick.get_text() for tick in axes.get_yticklabels()] for axes in drawn.axes]
    assert ticks == [
        ["Unchanged\n(control)", "Typo", "Synonym", "Seen: object\n(control)", "Unseen: object"],
        [""] * 5,  # as to its left
        ["Redrawn\n(control)", "Style: neon"],
        ["", ""],
        ["Ordinary\n(control)", "Shared: word"],
    ]
    points = [box for box in drawn.axes[0].containers if isinstance(box, ErrorbarContainer)]
    for container, (method, seeds) in zip(points, run.settings.runs.items(), strict=True):
        expected = [
            mean(run.value(method, seed, "robustness", f"{name}/{TEXT}/unsafe_share") for seed in seeds)
            for name in ("unchanged", "typo", "synonym", "seen_object", "unseen_object")
        ]
        np.testing.assert_allclose(container.lines[0].get_xdata(), expected)  # type: ignore[index]
