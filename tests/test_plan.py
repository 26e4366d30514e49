"""The estimate against sums done by hand, on settings small enough for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from saferclip import config, plan
from saferclip.config import ConfigError

CONFIGS = Path(__file__).parents[1] / "config"
COSTS: dict[str, Any] = {
    "gpu": "abacus",
    "train_rows": 1000,
    "held_out_rows": 100,
    "zero_shot_images": 50,
    "prompts": 10,
    "encoded_per_second": 10,
    "trained_per_second": 5,
    "seconds_per_unsafe_image": 36,
    "seconds_per_edit": 36,
    "seconds_per_image": 36,
    "seconds_per_answer": 3.6,
    "image_megabytes": 0.1,
    "pixels_megabytes": 0.2,
    "model_gigabytes": 2,
    "download_gigabytes": {},
}


def estimate(name: str = "mini", **sections: Any) -> dict[str, plan.Step]:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) | {"costs": COSTS} | sections
    return {step.name: step for step in plan.steps(config.validate(values))}


def test_training_counts_methods_seeds_and_epochs() -> None:
    """Two methods with three seeds, six epochs of 1,000 quadruples, five a second, two gigabytes each."""
    step = estimate()["training"]
    assert step.gpu_hours == pytest.approx(6 * 6 * 1000 / 5 / 3600)
    assert step.gigabytes == 12


def test_evaluation_counts_every_model() -> None:
    """The untuned one and six tuned ones, on two images of 100 and of the benchmark's 1,000 pairs."""
    step = estimate()["evaluation"]
    assert step.gpu_hours == pytest.approx(7 * 2 * (100 + 1000) / 10 / 3600)


def test_curves_count_every_tuned_model_at_every_scale() -> None:
    """Six tuned models at three scales; an untuned one is where all begin."""
    step = estimate(tradeoff={"scales": [0.5, 1, 2], "budgets": [5]})["tradeoff"]
    assert step.gpu_hours == pytest.approx(6 * 3 * 2 * (100 + 1000) / 10 / 3600)


def test_embedding_and_data_count_two_images_a_quadruple() -> None:
    found = estimate()
    assert found["embedding"].gpu_hours == pytest.approx(2 * 1100 / 10 / 3600)
    assert found["data"].gigabytes == pytest.approx(2 * 1200 * 0.1 / 1000)


def test_pixels_take_disk_where_they_are_kept() -> None:
    """Two images for each of 1,000 training and 100 validation rows."""
    assert estimate()["embedding"].gigabytes == 0
    mining = {"block_size": 8, "batch_size": 8, "pixels": "file"}
    assert estimate(mining=mining)["embedding"].gigabytes == pytest.approx(2 * 1100 * 0.2 / 1000)


def test_what_a_run_does_not_have_costs_nothing() -> None:
    assert set(estimate(tradeoff=None)) == {"data", "embedding", "training", "evaluation"}


def test_the_total_is_the_sum_of_the_lines() -> None:
    values = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8")) | {"costs": COSTS}
    run = config.validate(values)
    text = plan.describe(run)
    hours = sum(step.gpu_hours for step in plan.steps(run))
    assert "on one abacus" in text
    assert text.splitlines()[-1].split()[:2] == ["total", f"{hours:.1f}"]


def test_without_costs_there_is_no_estimate() -> None:
    with pytest.raises(ConfigError, match="section 'costs'"):
        plan.steps(config.load(CONFIGS / "mini.yaml"))
