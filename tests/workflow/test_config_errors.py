"""A wrong configuration stops the workflow before anything is planned, and says what to write."""

from __future__ import annotations

from typing import Any


def test_a_misspelt_key_fails_the_dry_run_and_names_the_near_one(finished: Any) -> None:
    config = finished.variant("misspelt", {"mining.blok_size": 1})
    text = finished.snakemake("--dry-run", config=config, check=False)
    assert "mining.blok_size: unknown key; did you mean 'block_size'?" in text
    assert "Job stats" not in text
    assert "Traceback" not in text


def test_all_problems_are_listed_at_once(finished: Any) -> None:
    config = finished.variant("several", {"figures.dip": 1, "evaluation.bootstrap": -1})
    text = finished.snakemake("--dry-run", config=config, check=False)
    assert "2 problem(s)" in text
    assert "did you mean 'dpi'?" in text
    assert "evaluation.bootstrap" in text


def test_another_configuration_is_not_merged_into_the_default_one(finished: Any) -> None:
    """A key that only the default run has must be missing, not silently taken from it."""
    file = finished.folder / "config/lacking.yaml"
    lines = (finished.folder / "config/mini.yaml").read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("title:")))
    assert "title: missing" in finished.snakemake("--dry-run", config="lacking", check=False)


def test_a_repeated_key_is_refused(finished: Any) -> None:
    """Snakemake's own reader would silently take the last."""
    text = (finished.folder / "config/mini.yaml").read_text()
    (finished.folder / "config/repeated.yaml").write_text(f"{text}\nseeds: [7]\n")
    said = finished.snakemake("--dry-run", config="repeated", check=False)
    assert "config/repeated.yaml: cannot be read: key 'seeds' is there twice" in said
    assert "Job stats" not in said
