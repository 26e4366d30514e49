"""Settings of NSFW-Caps: what goes together, what is missing, and what a step is given."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from saferclip import cli, config, io
from saferclip.config import BenchmarkImages, BenchmarkSettings

ROOT = Path(__file__).parents[2]
MINI = config.read(ROOT / "config/mini.yaml")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"source": "embedded"}, "source 'embedded' needs editor 'grammar'"),
        ({"editor": "none"}, "source 'nocaps' needs editor 'endpoint' or 'transformers'"),
        ({"editor": "grammar"}, "source 'nocaps' needs editor 'endpoint' or 'transformers'"),
        ({"source": "release"}, "source 'release' needs editor 'none'"),
        ({"image_maker": "icons"}, "needs image_maker 'diffusion' and safety_filter 'judges', or 'none' twice"),
        ({"safety_filter": "judges"}, "or 'none' twice"),
        ({"endpoint": None}, "editor is 'endpoint', so the section 'endpoint' must be given"),
        ({"nocaps": None}, "source is 'nocaps', so the section 'nocaps' must be given"),
        ({"jina_clip": None}, "similarity is 'jina-clip', so the section 'jina_clip' must be given"),
        (
            {"image_maker": "diffusion", "safety_filter": "judges"},
            "'diffusion' must be given; also, safety_filter is 'judges'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(kit: SimpleNamespace, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        kit.nocaps_settings("http://a.invalid/v1", **changes)


def test_an_address_must_be_one(kit: SimpleNamespace) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        kit.endpoint("localhost:8000/v1")


def with_benchmark(settings: BenchmarkSettings) -> config.Config:
    values = copy.deepcopy(MINI)
    values["benchmark"] = settings.model_dump(mode="json", exclude_none=True)
    values["tradeoff"] = None  # its validation pairs are drawn as the embedded benchmark is
    values["downloads"] = {
        "table": "config/versions.csv",
        "folder": "downloads",
        "local": {},
        "connections": 2,
        "retries": 1,
    }
    return config.validate(values)


def test_each_step_is_given_what_it_needs(kit: SimpleNamespace) -> None:
    settings = kit.nocaps_settings("http://a.invalid/v1", **kit.painted_settings())
    run = with_benchmark(settings)
    assert set(run.downloads_of("benchmark")) == {"jina-clip", "nocaps-validation", "painter"}
    assert set(run.downloads_of("benchmark_images")) == {"nocaps-validation"}
    step = config.parse_settings(BenchmarkImages, run.settings_of("benchmark_images"))
    assert (step.nocaps, step.release, step.seed) == (settings.nocaps, None, settings.seed)
    # Nothing else decides which images are needed.
    other = settings.model_copy(update={"candidates": 9, "min_similarity": 0.5})
    assert with_benchmark(other).settings_of("benchmark_images") == run.settings_of("benchmark_images")
    with pytest.raises(config.ConfigError, match="has no settings for it"):
        config.validate(MINI).section("benchmark_images")


@pytest.mark.parametrize("overlays", [["paper"], ["paper", "nsfw-caps"]])
def test_the_delivered_configurations_are_right(overlays: list[str]) -> None:
    from snakemake.utils import update_config

    values: dict[str, Any] = {}
    for name in overlays:
        update_config(values, config.read(ROOT / f"config/{name}.yaml"))
    settings = config.validate(values).benchmark
    assert settings is not None
    assert settings.source == ("nocaps" if "nsfw-caps" in overlays else "release")
    assert settings.judges and settings.judges.nudenet and settings.judges.q16


def test_the_commands_build_the_release(
    llm: Any, kit: SimpleNamespace, tmp_path: Path, tiny_quadruples: Any, tiny_clip_folder: Path
) -> None:
    """As the workflow calls them, with the base model's similarity and without images."""
    pairs = [(caption, f"{caption.rstrip('.')} next to a pistol", "violence") for caption in kit.SAFE]
    table = llm.write_release(tmp_path / "release.csv", pairs, kit.ADDRESS)
    manifest = kit.write_images(tmp_path, [f"{kit.ADDRESS}/val/{number:016x}.jpg" for number in range(12)])
    settings = kit.nocaps_settings(
        "http://a.invalid/v1", source="release", release={"table": "nsfw-caps"}, editor="none", similarity="base-model"
    )
    arguments = {
        "--settings": json.dumps(settings.model_dump(mode="json")),
        "--base-model": tiny_clip_folder,
        "--images": manifest,
        "--download": f"nsfw-caps={table}",
        "--data": tiny_quadruples(4, "train").parent,
        "--output": tmp_path / "out",
        "--state": tmp_path / "state",
    }
    done = CliRunner().invoke(cli.main, ["benchmark", *(str(part) for pair in arguments.items() for part in pair)])
    assert done.exit_code == 0, done.output
    assert io.read_table(tmp_path / "out/nsfw_caps.parquet").num_rows == 6
    assert (tmp_path / "out/DATASHEET.md").read_text().startswith("# Datasheet: NSFW-Caps\n")


def test_the_command_that_fetches_says_what_is_missing(tmp_path: Path) -> None:
    settings = BenchmarkImages.model_validate({"release": {"table": "nsfw-caps"}, "size": 1, "seed": 1})
    arguments = ["--settings", settings.model_dump_json(), "--download", f"nsfw-caps={tmp_path / 'nothing'}"]
    numbers = ["--connections", "1", "--retries", "0", "--output", str(tmp_path)]
    done = CliRunner().invoke(cli.main, ["benchmark-images", *arguments, *numbers])
    assert done.exit_code == 1 and "does not exist; fetch it with `saferclip download`" in done.output
