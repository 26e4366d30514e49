"""What figures and tables read of a method whose weights others have published: its evaluation, no training."""

from __future__ import annotations

from pathlib import Path

from saferclip import config
from saferclip.figures import paper, registry

MINI = Path(__file__).parents[2] / "config/mini.yaml"
PUBLISHED = {"published": {"weights": {"source": "local-dir:models/published"}}}


def test_published_methods_are_evaluated_but_neither_trained_nor_the_base_model() -> None:
    values = config.read(MINI)
    run = config.validate(values | {"methods": values["methods"] | PUBLISHED})
    assert "evaluation/published/seed-0/test.json" in registry.inputs(registry.TABLES["main"], run)
    assert not any("published" in path for path in registry.inputs(registry.FIGURES["training_curves"], run))
    assert not any("published" in path for path in registry.inputs(registry.TABLES["calibration"], run))


def test_a_run_that_trains_nothing_has_no_training_curves() -> None:
    values = config.read(MINI)
    run = config.validate(values | {"methods": {"clip": {}} | PUBLISHED})
    assert "training_curves" not in registry.applicable(registry.FIGURES, run)
    assert "main_comparison" in registry.applicable(registry.FIGURES, run)


def test_methods_have_their_names_in_print() -> None:
    peers = config.read(MINI.with_name("mini-peers.yaml"))["methods"]
    assert {paper.method_title(name) for name in peers} == {
        *("UWM", "projection", "mask-tuning", "SAGE", "CET", "ShieldCLIP", "HySAC")
    }
    assert not set(peers) & set(paper.read().methods)  # or they would stand in the paper's tables
