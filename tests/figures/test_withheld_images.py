"""Reports of runs without images: everything is made, and says what could not be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file

from saferclip import config, io
from saferclip.figures import figure, registry, style, table

ROOT = Path(__file__).parents[2]
GAP = "cannot be measured:\nimages are withheld"
SAFE_DIRECTIONS = ("text_to_image/", "image_to_text/")


def withhold(folder: Path, safe: bool) -> None:
    """Leave what an evaluation without unsafe images, or without any, can measure."""

    def measured(metric: str) -> bool:
        of_text = ("paired_caption_similarity", "safe_text/cosine", "uniformity_text", "text/")
        return metric.startswith(of_text) or (
            not safe and metric.startswith((*SAFE_DIRECTIONS, "safe_image/", "alignment", "uniformity_image", "image/"))
        )

    for path in folder.glob("evaluation/*/seed-*/*.json"):
        record = json.loads(path.read_text())
        record["metrics"] = {name: value for name, value in record["metrics"].items() if measured(name)}
        io.write_json(path, record)
    for path in folder.glob("evaluation/*/seed-*/ranks.parquet"):
        ranks = pq.read_table(path)
        kept = [not safe and f"{direction}/" in SAFE_DIRECTIONS for direction in ranks["direction"].to_pylist()]
        pq.write_table(ranks.filter(kept), path)
        points = path.with_name("embeddings.safetensors")
        save_file({name: rows for name, rows in load_file(points).items() if "caption" in name}, points)
    for path in folder.glob("training/*/seed-*/epochs.csv"):
        epochs = pd.read_csv(path)
        gone = [name for name in epochs if "recall" in name and not measured(name)]
        epochs.drop(columns=[*gone, *(["selection_score"] if safe else [])]).to_csv(path, index=False)
    rows = io.read_table(folder / "data/test.parquet").to_pylist()
    for row in rows:
        row.update(unsafe_image=None, safe_image=None if safe else row["safe_image"]["bytes"])
    io.write_table(folder / "data/test.parquet", rows)


@pytest.fixture(params=["captions alone", "no unsafe images"])
def incomplete(request: pytest.FixtureRequest, make_run: Callable[..., Any]) -> Any:
    run = make_run(benchmarks=("test", "drift", "geometry"))
    withhold(run.folder, safe=request.param == "captions alone")
    return run


APPLICABLE = config.load(ROOT / "config/own-pairs.yaml")


@pytest.mark.parametrize("name", registry.applicable(registry.FIGURES, APPLICABLE))
def test_every_figure_is_drawn(incomplete: Any, tmp_path: Path, name: str) -> None:
    figure.draw(name, incomplete.settings, incomplete.folder, tmp_path / name)
    assert (tmp_path / f"{name}.pdf").stat().st_size > 1000


@pytest.mark.parametrize("name", registry.applicable(registry.TABLES, APPLICABLE))
def test_every_table_is_written(incomplete: Any, tmp_path: Path, name: str) -> None:
    table.write(name, incomplete.settings, incomplete.folder, tmp_path / name)
    assert "nan" not in (tmp_path / f"{name}.csv").read_text().lower()


def texts(drawn: Figure) -> list[str]:
    return [text.get_text() for axes in drawn.axes for text in axes.texts]


def build(run: Any, name: str) -> Figure:
    with style.context():
        return figure.build(name, run.settings, run.folder)


def test_figures_say_what_could_not_be_measured(make_run: Callable[..., Any]) -> None:
    run = make_run(benchmarks=("test", "drift"))
    withhold(run.folder, safe=False)
    for name in ("main_comparison", "retrieval_grid"):
        assert texts(build(run, name)) == [GAP]
    loss, safe, unsafe = build(run, "training_curves").axes
    assert loss.lines and safe.lines and not unsafe.lines
    assert [text.get_text() for text in unsafe.texts] == [GAP]
    captions = build(run, "embedding_map").axes
    assert len(captions) == len(run.settings.runs) and captions[0].get_ylabel().startswith("Captions")


def test_a_method_without_cosines_has_no_drift_and_no_place_on_the_map(make_run: Callable[..., Any]) -> None:
    """As one in hyperbolic space, whose evaluation says so."""
    run = make_run()
    for folder in run.folder.glob("evaluation/safe-clip/seed-*"):
        record = json.loads((folder / "drift.json").read_text())
        record |= {"metrics": {}, "left_out": dict.fromkeys(record["metrics"], "no cosines")}
        io.write_json(folder / "drift.json", record)
        save_file({}, folder / "embeddings.safetensors")
    drawn = build(run, "embedding_map")
    assert [axes.get_title(loc="left") for axes in drawn.axes[:2]] == ["CLIP", "SaFeR-CLIP"] and len(drawn.axes) == 4
    table.write("drift", run.settings, run.folder, run.folder / "drift")
    rows = pd.read_csv(run.folder / "drift.csv").set_index("method")
    assert rows.loc["Safe-CLIP"].isna().all() and rows.loc["SaFeR-CLIP"].notna().any()


def test_zero_shot_accuracy_is_shown_though_images_of_pairs_are_withheld(make_run: Callable[..., Any]) -> None:
    run = make_run(benchmarks=("test", "zero_shot"))
    for path in run.folder.glob("evaluation/*/seed-*/test.json"):
        record = json.loads(path.read_text())
        record["metrics"] = {"paired_caption_similarity": record["metrics"]["paired_caption_similarity"]}
        io.write_json(path, record)
    redirection, utility = build(run, "main_comparison").axes
    assert [text.get_text() for text in redirection.texts] == [GAP]
    assert len(utility.patches) == 3
    assert texts(build(run, "safety_utility")) == [GAP]


def test_tables_have_gaps_where_nothing_was_measured(make_run: Callable[..., Any]) -> None:
    run = make_run(benchmarks=("test", "drift"))
    withhold(run.folder, safe=False)
    main = table.build("main", run.settings, run.folder)
    place = {column.key: number for number, column in enumerate(main.columns)}
    for row in main.words():
        assert row[place["test/unsafe_text_to_image/recall@1"]] == "–"
        assert row[place["test/text_to_image/recall@1"]] != "–"
    claims = table.build("claims", run.settings, run.folder)
    assert not any("supported" in cell.split() for row in claims.words() for cell in row[-1:])
