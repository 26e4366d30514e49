"""Edited models through the whole graph for real, at the tiny size: computed, evaluated, exported, chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from saferclip import models

RESULTS = Path("results/edits")
BENCHMARKS = ("test", "nsfw_caps", "gallery", "zero_shot", "drift")
METHODS = {
    "clip": {},
    "projection": {"edit": {"kind": "projection", "rank": 3, "subspace": "own"}},
    "uwm": {
        "edit": {
            "kind": "uwm",
            "calibration": 20,
            "text_modules": r"transformer\.resblocks\.\d+\.attn\.out_proj",
            "image_modules": r"visual\.layer\d\.\d\.conv3",
            "text_sparsity": 0.9,
            "image_sparsity": 0.9,
            "factor": -1,
        }
    },
}


@pytest.fixture(scope="module")
def edited(project_copy: Any) -> Any:
    """A project in which a run without any training was made, and its exports."""
    project = project_copy("edits")
    changes = {"methods": METHODS, "selection.edits": {"projection": {"rank": [1, 3]}}}
    project.smaller("edits", changes)
    project.snakemake("all", "exports", config="edits")
    return project


def test_edits_are_evaluated_once_like_any_model(edited: Any) -> None:
    run = edited.folder / RESULTS
    assert not (run / "training").exists()
    for method in ("projection", "uwm"):
        for benchmark in BENCHMARKS:
            record = json.loads((run / f"evaluation/{method}/seed-0/{benchmark}.json").read_text())
            assert record["method"] == method and record["metrics"]
    shown = pd.read_csv(run / "tables/main.csv")
    assert shown.astype(str).stack().str.contains("projection").any()
    assert (run / "report.html").is_file()


def test_an_edited_model_changes_what_it_should_alone(edited: Any) -> None:
    run = edited.folder / RESULTS
    base = models.load(run / "base_model").model.state_dict()
    expected = {
        "projection": {"text_projection", "visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"},
        "uwm": {"transformer.resblocks.0.attn.out_proj.weight"}
        | {f"visual.layer{layer}.0.conv3.weight" for layer in (1, 2, 3, 4)},
    }
    for method, names in expected.items():
        record = json.loads((run / f"edit/{method}/seed-0/record.json").read_text())
        found = models.load(run / f"edit/{method}/seed-0").model.state_dict()
        changed = {name for name, weight in found.items() if not torch.equal(weight, base[name])}
        assert changed == set(record["changed_weights"]) == names
    negated = found["visual.layer1.0.conv3.weight"] != base["visual.layer1.0.conv3.weight"]
    name = "visual.layer1.0.conv3.weight"
    assert torch.equal(found[name][negated], -base[name][negated])


def test_an_edited_model_is_exported(edited: Any) -> None:
    folder = edited.folder / RESULTS / "export/projection/seed-0"
    model = models.load(folder / "open_clip").model.state_dict()
    source = models.load(edited.folder / RESULTS / "edit/projection/seed-0").model.state_dict()
    assert all(torch.equal(model[name], weight) for name, weight in source.items())
    assert "without training" in (folder / "README.md").read_text()


def test_a_second_run_does_nothing_and_a_changed_edit_only_what_follows(edited: Any) -> None:
    assert "Nothing to be done" in edited.plan(config="edits").text
    changed = edited.variant("edits-changed", {"methods.projection.edit.rank": 2}, "edits")
    plan = edited.plan(config=changed)
    assert plan.of("edit") == [{"method": "projection", "seed": "0"}]
    assert {job["method"] for job in plan.of("evaluation")} == {"projection"}
    assert not {"embedding", "base_model", "data"} & set(plan.counts)


def test_the_choice_is_repeated_on_request(edited: Any) -> None:
    edited.snakemake("edit_selection", config="edits")
    found = pd.read_csv(edited.folder / "config/edits.edits.csv")
    assert found["method"].tolist() == ["projection", "projection", "uwm"]
    assert found["settings"].tolist() == ["rank=1", "rank=3", "as configured"]
    best = found[found["method"] == "projection"].sort_values("selection_score", ascending=False, kind="stable")
    assert best["chosen"].tolist() == [True, False]
    assert not list((edited.folder / RESULTS / "edit_selection").rglob("*.safetensors"))
