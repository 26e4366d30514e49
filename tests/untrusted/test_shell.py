"""No path or name of a configuration means anything to a shell; legal ones, however odd, work."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from PIL import Image
from projects import Project

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def project(project_copy: Callable[[str], Project]) -> Project:
    return project_copy("hostile")


HOSTILE = 'it\'s "a"; touch marker `touch marker` $(touch marker) & > marker #é'


def test_rules_run_with_paths_that_a_shell_would_obey(project: Any) -> None:
    """Tables, a download and a model at such a place: the steps that read them run, and nothing else does."""
    place = project.folder / HOSTILE
    pictures = place / "set/test/a_class"
    pictures.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(pictures / "a.png")
    for split in SPLITS:
        with (place / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "safe_caption", "unsafe_caption", "safe_image", "unsafe_image"])
            writer.writerow([split, "a cat", "a cat there", "set/test/a_class/a.png", "set/test/a_class/a.png"])
    (place / "templates.txt").write_text("a photo of a {c}\n")
    shutil.copy(project.folder / "config/versions.csv", place / "versions.csv")
    values = yaml.safe_load((project.folder / "config/own-pairs.yaml").read_text())
    values |= {
        "name": "hostile",
        "title": HOSTILE,
        "data": {"source": "local", "local": {split: f"{HOSTILE}/{split}.csv" for split in SPLITS}},
        "downloads": {
            "table": f"{HOSTILE}/versions.csv",
            "folder": f"{HOSTILE}/downloads",
            "local": {"a-set": f"{HOSTILE}/set"},
            "connections": 1,
            "retries": 0,
        },
        "test_sets": {
            "source": "public",
            "public": {
                "zero_shot": {
                    "one": {
                        "title": HOSTILE,
                        "download": "a-set",
                        "split": "test",
                        "metric": "accuracy",
                        "templates": f"{HOSTILE}/templates.txt",
                    }
                },
                "gallery_unsafe": 1,
                "gallery_safe_ratio": 1,
                "gallery_minimum": 1,
                "seed": 0,
            },
        },
    }
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(values))
    targets = ("results/hostile/data/train.parquet", "results/hostile/test_sets/zero_shot.parquet")
    project.snakemake(*targets, config="hostile")
    assert all((project.folder / target).is_file() for target in targets)
    assert not list(project.folder.rglob("marker"))


def test_what_a_command_is_told_is_quoted_in_every_rule(project: Any) -> None:
    """What comes from a configuration and not from us: settings, places of downloads, caches and their table."""
    rules = project.parsed("{rule.name: rule.shellcmd for rule in workflow.rules}", "paper")
    for name, command in rules.items():
        for piece in ("{params.settings}", "{params.table}", "{params.cache}", "{params.chosen}", "{params.detail}"):
            assert piece not in (command or ""), f"{name}: {piece} is not quoted"
    assert all(part in rules["download"] for part in ("{params.folder:q}", "{params.table:q}", "{log:q}"))


def test_a_download_of_a_hostile_folder_is_asked_for_as_one_word(project: Any) -> None:
    """Nothing is fetched: the table says that only the user can supply it."""
    table = project.folder / HOSTILE / "versions.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    name = next(row["name"] for row in rows if row["kind"] == "folder")
    told = project.snakemake(f"{HOSTILE}/downloads/{name}.json", config="hostile", check=False)
    log = project.folder / HOSTILE / f"downloads/logs/{name}.log"
    assert "only you can supply it" in log.read_text(), told[-2000:]
    assert not list(project.folder.rglob("marker"))
