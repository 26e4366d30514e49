"""The plan of the paper scale: complete on a fresh clone, with its cost; what is dear is not made again lightly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="module")
def project(project_copy: Callable[..., Any]) -> Any:
    """A project in which the run at paper scale seems to have been made; two shards are as good as 64."""
    project = project_copy("paper-plan")
    project.variant("planned", {"data.visu.unsafe_images.shards": 2, "seeds": [0]}, config="paper")
    return project


def test_the_plan_needs_nothing_but_the_clone(project: Any) -> None:
    plan = project.plan(config="paper")
    assert plan.counts["unsafe_images"] == 64
    assert plan.counts["training"] == 6
    assert plan.counts["evaluation"] == 8
    assert plan.counts["tradeoff"] == 8
    steps = {"data", "benchmark", "benchmark_images", "test_sets", "base_model", "published_model", "mining", "report"}
    assert steps <= set(plan.counts)


def test_the_plan_says_what_it_costs(project: Any) -> None:
    text = project.plan(config="paper").text
    costs = yaml.safe_load((project.folder / "config/paper.yaml").read_text())["costs"]
    assert f"Estimate for the whole of 'paper', on one {costs['gpu']}" in text
    total = re.search(r"total +([\d.]+) GPU h +([\d.]+) GB", text)
    assert total
    lines = re.findall(r"^  (?!total)\w+ .* ([\d.]+) GPU h +([\d.]+) GB$", text, re.MULTILINE)
    assert float(total[1]) == pytest.approx(sum(float(hours) for hours, _ in lines), abs=0.5)
    assert float(total[2]) == pytest.approx(sum(float(size) for _, size in lines), abs=0.5)


def test_the_default_run_has_no_estimate(finished: Any) -> None:
    assert "Estimate for" not in finished.plan().text


def test_edited_code_does_not_paint_for_hundreds_of_hours_anew(project: Any) -> None:
    fetched = {job["download"] for job in project.plan("--forceall", config="planned").of("download")}
    (project.folder / "downloads").mkdir()
    for name in fetched:
        (project.folder / f"downloads/{name}.json").write_text(name)
    project.pretend("planned")
    assert not project.plan(config="planned").jobs
    file = project.folder / "src/saferclip/diffusion.py"
    file.write_text(f"{file.read_text()}\n# edited\n")
    plan = project.plan(config="planned")
    assert "unsafe_images" not in plan.counts
    assert "benchmark" in plan.counts  # minutes, not hundreds of hours
    changed = project.variant("more", {"data.visu.unsafe_images.candidates": 2}, config="planned")
    assert project.plan(config=changed).counts["unsafe_images"] == 2
