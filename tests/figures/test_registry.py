"""The registry: what it promises of its products, and that it is cheap to read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saferclip import config
from saferclip.config import Config
from saferclip.figures import figure, registry, table

MINI = Path(__file__).parents[2] / "config" / "mini.yaml"
PRODUCTS = {**registry.FIGURES, **registry.TABLES}
DOWNLOADS = {"table": "config/versions.csv", "folder": "downloads", "local": {}, "connections": 1, "retries": 0}


@pytest.fixture
def mini() -> Config:
    return config.load(MINI)


def generation(mini: Config) -> Config:
    """The mini configuration with the overlay that switches generation on."""
    return changed(mini, downloads=DOWNLOADS, **config.read(MINI.with_name("generation.yaml")))


def changed(mini: Config, **sections: Any) -> Config:
    """The mini configuration with other sections, as plain values."""
    return config.validate({**mini.model_dump(mode="json"), **sections})


def test_reading_it_imports_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "matplotlib", "seaborn", "pyarrow", "pydantic", "yaml", "torch")
    code = f"import sys, saferclip.figures.registry; print([name for name in {heavy!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_figures_and_tables_never_import_torch() -> None:
    modules = ["saferclip.figures.figure", "saferclip.figures.table"]
    modules += [product.function.partition(":")[0] for product in PRODUCTS.values()]
    code = f"import sys, importlib; [importlib.import_module(name) for name in {modules!r}]; "
    code += "print([name for name in ('torch', 'open_clip', 'peft', 'datasets') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_it_names_every_product_that_was_asked_for() -> None:
    assert set(registry.FIGURES) == {
        "main_comparison",
        "safety_utility",
        "tradeoff",
        "zero_shot_sets",
        "similarity",
        "geometry",
        "training_curves",
        "embedding_map",
        "retrieval_grid",
        "robustness",
        "differences",
    }
    assert set(registry.TABLES) == {
        "main",
        "claims",
        "retrieval",
        "unsafe_gallery",
        "zero_shot",
        "drift",
        "tradeoff",
        "geometry",
        "geometry_correlation",
        "probes",
        "safeground",
        "robustness",
        "over_refusal",
        "differences",
        "scope",
        "text_to_image",
        "image_to_text",
        "calibration",
        "mining",
        "datasheet",
        "learning_rates",
    }


@pytest.mark.parametrize("name", PRODUCTS)
def test_functions_exist_and_titles_and_captions_are_sentences(name: str, mini: Config) -> None:
    product = PRODUCTS[name]
    assert callable(registry.function(product))
    caption = registry.caption(product, mini)
    assert caption.endswith(".")
    assert "{" not in caption
    assert "  " not in caption
    assert not set("*`|_\\") & set(caption)  # the report reads it as reStructuredText
    assert product.title[0].isupper()


def test_captions_name_the_run(mini: Config) -> None:
    caption = registry.caption(registry.TABLES["main"], mini)
    assert "over 3 seeds with 95% bootstrap intervals over 1,000 (ViSU-mini) and 1,000 (NSFW-Caps-mini)" in caption
    other = changed(mini, title="ViSU", seeds=[4])
    caption = registry.caption(registry.TABLES["main"], other)
    assert "over one seed with 95% bootstrap intervals over 1,000 (ViSU) and 1,000 (NSFW-Caps)" in caption


def test_placeholders_stand_for_all_evaluated_trained_or_untuned_runs(mini: Config) -> None:
    evaluated = registry.inputs(registry.TABLES["drift"], mini)
    assert evaluated == [
        "evaluation/clip/seed-0/drift.json",
        *(f"evaluation/safe-clip/seed-{seed}/drift.json" for seed in (0, 1, 2)),
        *(f"evaluation/safer-clip/seed-{seed}/drift.json" for seed in (0, 1, 2)),
    ]
    curves = registry.inputs(registry.FIGURES["training_curves"], mini)
    assert "training/safer-clip/seed-2/epochs.csv" in curves
    assert not any("/clip/" in path for path in curves)
    assert len(curves) == 2 * 3 * 2
    calibrated = [path for path in registry.inputs(registry.TABLES["calibration"], mini) if "evaluation" in path]
    assert calibrated
    assert all(path.startswith("evaluation/clip/seed-0/") for path in calibrated)
    maps = registry.inputs(registry.FIGURES["embedding_map"], mini)
    assert maps == [
        f"evaluation/{name}/seed-0/{file}"
        for file in ("embeddings.safetensors", "test.json")
        for name in ("clip", "safe-clip", "safer-clip")
    ]


def test_only_what_the_figures_section_asks_for_is_read(mini: Config) -> None:
    figures = {**mini.figures.model_dump(mode="json"), "runs": {"clip": [0], "safer-clip": [1, 2]}}
    chosen = changed(mini, figures=figures)
    paths = registry.inputs(registry.TABLES["drift"], chosen)
    assert paths == [
        f"evaluation/{run}/drift.json" for run in ("clip/seed-0", "safer-clip/seed-1", "safer-clip/seed-2")
    ]


def test_all_default_products_apply_to_the_mini_run(mini: Config) -> None:
    others = {"learning_rates", "text_to_image", "image_to_text", "differences"}
    assert registry.applicable(registry.FIGURES, mini) == [name for name in registry.FIGURES if name not in others]
    assert registry.applicable(registry.TABLES, mini) == [name for name in registry.TABLES if name not in others]


def comparing(mini: Config, **settings: Any) -> Config:
    """The mini configuration with Safe-CLIP compared with SaFeR-CLIP."""
    differences = {"reference": "safer-clip", "others": "everywhere", "groups": {"loss": ["safe-clip"]}, **settings}
    return changed(mini, figures={**mini.figures.model_dump(mode="json"), "differences": differences})


def test_differences_are_shown_where_they_are_named(mini: Config) -> None:
    compared = comparing(mini)
    for products in (registry.FIGURES, registry.TABLES):
        assert set(registry.applicable(products, compared)) - set(registry.applicable(products, mini)) == {
            "differences"
        }


def test_methods_that_are_for_differences_alone_are_read_by_nothing_else(mini: Config) -> None:
    everywhere, here = comparing(mini), comparing(mini, others="here")
    retrieval, differences = registry.TABLES["retrieval"], registry.TABLES["differences"]
    assert registry.inputs(retrieval, everywhere) == registry.inputs(retrieval, mini)
    others = [path for path in registry.inputs(retrieval, mini) if "/safe-clip/" not in path]
    assert registry.inputs(retrieval, here) == others
    assert registry.inputs(differences, here) == registry.inputs(differences, everywhere)
    assert "SaFeR-CLIP, in redirection" in registry.caption(differences, here)


def test_generation_brings_its_tables(mini: Config) -> None:
    generating = generation(mini)
    added = {"text_to_image", "image_to_text"}
    assert (
        set(registry.applicable(registry.TABLES, generating)) - set(registry.applicable(registry.TABLES, mini)) == added
    )
    assert registry.inputs(registry.TABLES["text_to_image"], generating) == [
        f"text_to_image/{method}/seed-0/{guidance}.json"
        for guidance in ("none", "sld-strong")
        for method in ("clip", "safe-clip", "safer-clip")
    ]


def test_public_test_sets_are_said_to_be_real_and_not_calibrated(mini: Config) -> None:
    drawn = registry.caption(registry.TABLES["unsafe_gallery"], mini)
    assert "over 200 queries in each direction; a drawing style that no training set shows stands in" in drawn
    public = {"galleries": {"smid": "smid"}, "zero_shot": {}, "safe_images": "safe", "seed": 1}
    pets = {"title": "Pets", "download": "pets", "split": "test", "metric": "accuracy"}
    public |= {"zero_shot": {"pets": pets}, "gallery_unsafe": 9, "gallery_safe_ratio": 9, "gallery_minimum": 1}
    real = changed(
        mini,
        title="ViSU",
        downloads=DOWNLOADS,
        test_sets={"source": "public", "public": public},
        data={"source": "local", "local": {"train": "a.csv", "validation": "b.csv", "test": "c.csv"}},
        evaluation={**mini.evaluation.model_dump(mode="json"), "benchmarks": ["test", "gallery", "zero_shot"]},
        tradeoff=None,
    )
    caption = registry.caption(registry.TABLES["unsafe_gallery"], real)
    assert "over all queries in each direction; unsafe images are real ones, captions are those of ViSU." in caption
    assert {"unsafe_gallery", "zero_shot", "claims"} <= set(registry.applicable(registry.TABLES, real))
    assert "calibration" not in registry.applicable(registry.TABLES, real)


def test_products_without_their_benchmark_are_left_out_and_others_read_less(mini: Config) -> None:
    evaluation = {**mini.evaluation.model_dump(mode="json"), "benchmarks": ["test"]}
    small = changed(mini, evaluation=evaluation, methods={"clip": {}}, tradeoff=None)
    assert registry.applicable(registry.FIGURES, small) == [
        "main_comparison",
        "similarity",
        "embedding_map",
        "retrieval_grid",
    ]
    assert registry.applicable(registry.TABLES, small) == [
        "main",
        "claims",
        "retrieval",
        "safeground",
        "mining",
    ]
    assert registry.inputs(registry.TABLES["main"], small) == [
        "evaluation/clip/seed-0/test.json",
        "evaluation/clip/seed-0/ranks.parquet",
    ]
    # data/test.parquet is a file of its own, which happens to be called like a benchmark.
    assert "data/test.parquet" in registry.inputs(registry.FIGURES["retrieval_grid"], small)


def test_unknown_names_are_refused_with_the_known_ones(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'mian'; choose one of: main, claims"):
        table.write("mian", run.settings, run.folder, tmp_path / "x")
    with pytest.raises(ValueError, match=r"no 'map'; choose one of: main_comparison"):
        figure.draw("map", run.settings, run.folder, tmp_path / "x")


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_declared_inputs_are_all_that_is_read(name: str, run: Any, mini: Config, tmp_path: Path) -> None:
    for path in registry.inputs(PRODUCTS[name], generation(mini)):
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run.folder / path, tmp_path / "run" / path)
    if name in registry.FIGURES:
        figure.draw(name, run.settings.model_copy(update={"formats": ("png",)}), tmp_path / "run", tmp_path / name)
    else:
        table.write(name, run.settings, tmp_path / "run", tmp_path / name)
        whole = tmp_path / "whole"
        table.write(name, run.settings, run.folder, whole)
        assert (tmp_path / f"{name}.csv").read_bytes() == whole.with_suffix(".csv").read_bytes()


def test_a_run_of_one_benchmark_gets_its_products(make_run: Callable[..., Any], tmp_path: Path) -> None:
    own = make_run(benchmarks=("test",), title="My own pairs")
    table.write("main", own.settings, own.folder, tmp_path / "main")
    header = (tmp_path / "main.csv").read_text().splitlines()[0]
    assert "test/unsafe_text_to_image/recall@1 [%]" in header
    assert "nsfw_caps" not in header
    assert "zero_shot" not in header
    figure.draw("main_comparison", own.settings, own.folder, tmp_path / "bars")
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_a_run_without_curves_has_no_product_of_them(mini: Config) -> None:
    assert "tradeoff" in registry.applicable(registry.FIGURES, mini)
    assert "tradeoff" in registry.applicable(registry.TABLES, mini)
    values = mini.model_dump(mode="json") | {"tradeoff": None}
    bare = type(mini).model_validate(values)
    assert "tradeoff" not in registry.applicable(registry.FIGURES, bare)
    files = registry.inputs(registry.FIGURES["tradeoff"], mini)
    assert "tradeoff/safer-clip/seed-2/outcomes.parquet" in files and "tradeoff/clip/seed-0/outcomes.parquet" in files
