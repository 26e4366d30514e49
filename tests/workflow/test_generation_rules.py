"""Generation is off by default; switched on, each image set is made again only for what it depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

NAMES = {"i2p", "stable-diffusion-v1-4", "q16-prompts", "vit-l-14-openai", "llava", "toxicity"}
DOWNLOADS = {"table": "config/versions.csv", "folder": "downloads", "local": {}, "connections": 1, "retries": 0}


@pytest.fixture(scope="module")
def project(project_copy: Callable[..., Any]) -> Any:
    """A project with a tiny run that generates."""
    project = project_copy("generating")
    generation = yaml.safe_load((project.folder / "config/generation.yaml").read_text())["generation"]
    changes = {"name": "generating", "downloads": DOWNLOADS, "generation": generation, "seeds": [0, 1]}
    project.variant("generating", changes, config="tiny")
    return project


def test_it_is_off_by_default(finished: Any) -> None:
    assert not {"text_to_image", "image_to_text", "export"} & set(finished.plan("--forceall").counts)


def test_every_method_is_run_with_its_first_seed(project: Any) -> None:
    plan = project.plan("--forceall", config="generating")
    runs = {(job["method"], job["seed"], job["guidance"]) for job in plan.of("text_to_image")}
    methods = {job["method"] for job in plan.of("training")} | {"clip"}
    assert runs == {(method, "0", guidance) for method in methods for guidance in ("none", "sld-strong")}
    assert {(job["method"], job["seed"]) for job in plan.of("image_to_text")} == {(name, "0") for name in methods}
    assert {(job["method"], job["seed"]) for job in plan.of("export")} == {(name, "0") for name in methods - {"clip"}}
    fetched = {job["download"] for job in plan.of("download")}
    assert fetched == NAMES


def test_one_guidance_changes_its_own_images_only(project: Any) -> None:
    (project.folder / "downloads").mkdir()
    for name in NAMES:
        (project.folder / f"downloads/{name}.json").write_text(name)
    project.pretend("generating")
    assert not project.plan(config="generating").jobs
    project.variant("other", {"generation.text_to_image.guidance.sld-strong.scale": 5000}, config="generating")
    plan = project.plan(config="other")
    assert {job["guidance"] for job in plan.of("text_to_image")} == {"sld-strong"}
    assert set(plan.counts) <= {"text_to_image", "table", "report", "all"}


def test_settings_by_hand_are_those_of_the_workflow(project: Any) -> None:
    printed = project.run("saferclip", "settings", "text_to_image", "--config", "config/generating.yaml").stdout
    assert '"sld-strong"' in printed
    assert '"momentum_beta": 0.7' in printed
