"""The delivered run, in a fresh clone of what is committed: pulled, it is as if it had been made there.

Between deliveries the code differs from what ``dvc.lock`` records: all would be made anew, so there is nothing to test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BASE_MODEL = "results/iconworld-clip"


@pytest.fixture(scope="module")
def delivered(project_copy: Any) -> Iterator[Any]:
    """A clone of this repository after `dvc pull`; skips if the run was made by other code than the committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, so there is no commit to look at")
    clone = project_copy("delivered", empty=True)
    clone.run("git", "clone", "--quiet", str(ROOT), ".")
    changed = _changed(clone, "mini")
    if edited := sorted(set(changed.get("changed deps", {})) - {BASE_MODEL}):
        pytest.skip(f"between deliveries: committed after the delivered run was made: {', '.join(edited)}")
    assert set(changed["changed outs"]) == {"results/mini", ".snakemake/metadata"}  # nothing is there yet
    clone.run("dvc", "pull")
    yield clone
    shutil.rmtree(clone.folder)  # it is large


def test_after_a_pull_there_is_nothing_to_do(delivered: Any) -> None:
    assert "Nothing to be done" in delivered.plan().text
    assert "up to date" in delivered.run("dvc", "status").stdout
    assert "up to date" in delivered.run("dvc", "repro", "--dry").stdout


def test_what_was_pulled_is_whole(delivered: Any) -> None:
    assert "not here" not in delivered.run("saferclip", "verify").stdout
    assert "not here" not in delivered.run("saferclip", "verify", "artifacts").stdout


def test_one_setting_of_one_method_plans_its_jobs_and_their_summary(delivered: Any) -> None:
    delivered.variant("mini", {"methods.safer-clip.learning_rate": 2e-3})
    plan = delivered.plan()
    assert set(plan.counts) == {"training", "evaluation", "tradeoff", "figure", "table", "report", "all"}
    for rule in ("training", "evaluation", "tradeoff"):
        assert sorted((job["method"], job["seed"]) for job in plan.of(rule)) == [
            ("safer-clip", seed) for seed in ("0", "1", "2")
        ]
    assert list(_changed(delivered, "mini")["changed deps"]) == ["config/mini.yaml"]
    assert "Running stage 'mini'" in delivered.run("dvc", "repro", "--dry").stdout
    delivered.run("git", "checkout", "--quiet", "config/mini.yaml")
    assert "Nothing to be done" in delivered.plan().text


def _changed(project: Any, stage: str) -> dict[str, dict[str, str]]:
    """What `dvc status` says of a stage: kind of change -> path -> how."""
    answer = project.run("dvc", "status", "--json").stdout.splitlines()[-1]  # after warnings
    kinds: list[dict[str, dict[str, str]]] = json.loads(answer).get(stage, [])
    return {kind: paths for entry in kinds if isinstance(entry, dict) for kind, paths in entry.items()}
