"""A run that is killed again and again ends as one that nobody disturbed, bit for bit.

Twenty kills by default; SAFERCLIP_KILLS says how many. The run is a smaller config/tiny.yaml in which every rule of the
default run takes part; both runs are made once for this file, so its tests belong on one worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="jobs are found through Linux's /proc")

KILLS = int(os.environ.get("SAFERCLIP_KILLS", "20"))
SEED = 5
RUN = "small"
RESULTS = (f"results/{RUN}", f"results/{RUN}-clip")
STEPS = {
    "data",
    "test-sets",
    "base-model-training",
    "base-model",
    "benchmark",
    "embedding",
    "mining",
    "training",
    "evaluation",
    "tradeoff",
    "figure",
    "table",
    "report",
}


@dataclass(frozen=True)
class Killed:
    """A project in which a run was killed, and what was injected."""

    project: Any
    injected: list[Any]
    hit: set[str]
    resumed: int


@pytest.fixture(scope="module")
def undisturbed(project_copy: Callable[[str], Any], runs: ModuleType) -> tuple[Any, dict[str, float]]:
    """A project in which nobody disturbed the run, and how long each step took in it."""
    project = _project(project_copy, "undisturbed")
    return project, runs.durations(runs.Run(project, RUN))


@pytest.fixture(scope="module")
def killed(undisturbed: tuple[Any, dict[str, float]], project_copy: Callable[[str], Any], runs: ModuleType) -> Killed:
    """A project in which the run was killed, started again each time, and at last left in peace."""
    project = _project(project_copy, "killed")
    expected = {folder: runs.products(undisturbed[0].folder / folder) for folder in RESULTS}
    killer = runs.Killer(project, RUN, undisturbed[1], expected, SEED)
    killer.kill_times(KILLS)
    last = runs.Run(project, RUN)
    assert last.wait() == 0, last.text[-6000:]
    killer.look_for_resumed()
    return Killed(project, killer.injected, killer.hit, len(killer.resumed))


def test_every_step_takes_part(undisturbed: tuple[Any, dict[str, float]]) -> None:
    assert undisturbed[1].keys() == STEPS


def test_every_step_was_killed(killed: Killed) -> None:
    assert len(killed.injected) >= KILLS
    assert killed.hit == STEPS


def test_training_went_on_from_its_state(killed: Killed) -> None:
    assert killed.resumed >= 1


def test_the_results_are_those_of_an_undisturbed_run(
    killed: Killed, undisturbed: tuple[Any, Any], runs: ModuleType, note: Callable[[str, str, str], None]
) -> None:
    for folder in RESULTS:
        expected = runs.products(undisturbed[0].folder / folder)
        made = runs.products(killed.project.folder / folder)
        assert made.keys() == expected.keys()
        assert [name for name in expected if made[name] != expected[name]] == []
    for fault in killed.injected:
        note(fault.fault, fault.stage, "same results, byte for byte")


def test_killed_writers_leave_nothing(killed: Killed, runs: ModuleType) -> None:
    assert list((killed.project.folder / "results").rglob("state/**/*.*")) == []
    assert runs.scratch(killed.project.folder / "results") == []
    assert list((killed.project.folder / ".snakemake/locks").glob("*")) == []


def test_there_is_nothing_left_to_do(killed: Killed) -> None:
    assert "Nothing to be done" in killed.project.snakemake(config=RUN)


def _project(project_copy: Callable[[str], Any], name: str) -> Any:
    """A project with a smaller configuration than tiny's, in which the same rules take part."""
    project = project_copy(name)
    tiny = yaml.safe_load((project.folder / "config/tiny.yaml").read_text())
    changes = {
        "base_model.source": f"local-dir:results/{RUN}-clip",
        "base_model_training.phases": [{**tiny["base_model_training"]["phases"][0], "samples": 64}],
        "optimisation.epochs": 12,  # long enough to be hit in one of the later ones
        "evaluation.benchmarks": ["test", "nsfw_caps", "zero_shot"],
        "figures.formats": ["png"],
    }
    project.smaller(RUN, changes)
    return project
