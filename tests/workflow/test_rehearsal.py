"""The rehearsal for real: the plan of the paper scale from download to report, stopped once on its way.

One module and one run, several minutes long; every test looks at what it left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from saferclip import ethics, io, models

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/rehearsal"
RESULTS, RELEASE, WORLD = "results/rehearsal", "results/rehearsal-release", "downloads/rehearsal"
FILES = ("config/paper.yaml", "config/generation.yaml", "config/rehearsal.yaml")
GROUPS = {"all", "exports", "downloads", "figures_and_tables"}  # rules that make nothing themselves
PATIENCE = 600  # seconds until a file that is waited for must be there


@pytest.fixture(scope="module")
def project(project_copy: Callable[..., Any]) -> Any:
    """A project whose rehearsal was stopped in the midst of making images, and then went on to its end."""
    project = project_copy("rehearsal")
    shutil.copytree(SCRIPTS, project.folder / "tests/rehearsal", ignore=shutil.ignore_patterns("__pycache__"))
    _stop_at(project, f"{RESULTS}/state/unsafe_images/0/finished.jsonl", lines=5)
    _paint_over(project)
    project.run(sys.executable, "tests/rehearsal/run.py")
    return project


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The module run.py."""
    sys.path.insert(0, str(SCRIPTS))
    spec = spec_from_file_location("rehearsal_run", SCRIPTS / "run.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))


def test_every_rule_of_the_plan_ran(project: Any, script: ModuleType) -> None:
    planned = _planned(_plan(project, "--forceall", "all", "exports"))
    names = {"figures": "figure", "tables": "table"}
    found = script.times(project.folder / RESULTS, project.folder / WORLD)
    # The second run has downloads of its own in the same folder.
    ran = Counter({names.get(rule, rule): len(seconds) for rule, seconds in found.items()})
    assert ran.pop("download") == planned.pop("download") + 1
    assert ran == {rule: count for rule, count in planned.items() if rule not in GROUPS}
    assert {"unsafe_images", "benchmark_images", "published_model", "export", "text_to_image", "image_to_text"} <= set(
        ran
    )


def test_nothing_is_left_to_do(project: Any, script: ModuleType) -> None:
    assert "Nothing to be done" in _plan(project, "all", "exports")
    release = [*script.RELEASE_TARGETS, "--configfile", *script.RELEASE_CONFIGURATION]
    assert "Nothing to be done" in _snakemake(project, "--dry-run", *release)


def test_a_stopped_rehearsal_left_no_process_and_went_on_where_it_was(project: Any) -> None:
    assert _processes_in(project.folder) == []
    rows = io.read_table(project.folder / RESULTS / "unsafe_images/0.parquet").to_pylist()
    marked = [row["id"] for row in rows if row["image"] and _is_plain_orange(row["image"]["bytes"])]
    assert marked == [(project.folder / "painted-over.txt").read_text()]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through Linux's /proc")
@pytest.mark.parametrize(
    "answer, grace, saves", [("sleep 1; echo > saved; exit", 60, True), ("", 0.5, False)], ids=["in a while", "never"]
)
def test_what_is_stopped_may_tidy_up_and_is_gone(
    answer: str, grace: float, saves: bool, script: ModuleType, tmp_path: Path
) -> None:
    """A job that does not end at once, in the session of a process that does."""
    job = f"trap '{answer}' TERM; echo > started; while :; do sleep 1; done"
    process = subprocess.Popen(["sh", "-c", f"({job}) & wait"], cwd=tmp_path, start_new_session=True)
    with script.group(process, grace):
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        assert script.living(process.pid)
    assert script.living(process.pid) == []
    assert (tmp_path / "saved").exists() == saves


def test_any_other_use_of_the_network_would_have_been_noticed(script: ModuleType) -> None:
    import requests

    with script.llm.LanguageModel() as model:
        proxies = {"http": model.address.removesuffix("/v1"), "https": model.address.removesuffix("/v1")}
        assert requests.get("http://files.invalid/a.zip", proxies=proxies, timeout=10).status_code == 404
        with pytest.raises(requests.exceptions.ProxyError):
            requests.get("https://hub.invalid/api", proxies=proxies, timeout=10)
        assert model.strays == ["GET http://files.invalid/a.zip", "CONNECT hub.invalid:443"]


def test_downloads_are_pinned_where_the_table_pins_them(project: Any) -> None:
    manifests = {path.stem: io.read_json(path) for path in (project.folder / WORLD / "fetched").glob("*.json")}
    assert manifests["food101"]["revision"] == "147a52fcbbb4f9d14293f9e2d821744d6883efef"
    assert "visu-text" in manifests  # which is gated: the token was used
    assert "llm-editor" not in manifests  # which this run does not name


def test_unsafe_images_were_made_for_most_rows_and_every_row_is_counted(project: Any) -> None:
    summary = io.read_json(project.folder / RESULTS / "data/summary.json")
    for split, rows in {"train": 48, "validation": 16, "test": 24}.items():
        counts = summary[split]
        assert counts["rows"] == counts["safe_images"] == rows
        assert counts["unsafe_images"] + counts["without_unsafe_image"] == rows
        assert counts["unsafe_images"] > rows / 2
    assert summary["corrected_tags"] == {"illegal acitivity": "illegal activity"}


def test_nsfw_caps_was_built_by_the_language_model(project: Any) -> None:
    sheet = io.read_json(project.folder / RESULTS / "benchmark/datasheet.json")
    assert sheet["rows"] == 12
    assert sheet["made_by"]["editor"]["reported_models"] == ["rehearsal-editor"]
    table = io.read_table(project.folder / RESULTS / "benchmark/nsfw_caps.parquet").to_pylist()
    for row in table:
        could_mean_a_minor = ethics.minor_hint([row["safe_caption"], row["unsafe_caption"]])
        assert row["safe_image"]
        assert bool(row["unsafe_image"]) != bool(could_mean_a_minor)


def test_records_say_what_they_were_made_from_and_how_much_was_used(project: Any) -> None:
    records = [
        path
        for step in ("evaluation", "text_to_image", "image_to_text")
        for path in sorted((project.folder / RESULTS / step).rglob("*.json"))
    ]
    assert len(records) == 4 * 7 + 4 * 2 + 4
    for path in records:
        record = json.loads(path.read_text())
        assert record["counts"] and record["metrics"], path
        assert {"settings_sha256", "versions", "hardware"} <= set(record["provenance"]), path
        assert all(estimate["count"] > 0 for estimate in record["metrics"].values()), path
    test = io.read_json(project.folder / RESULTS / "evaluation/clip/seed-0/test.json")["counts"]
    missing = io.read_json(project.folder / RESULTS / "data/summary.json")["test"]["without_unsafe_image"]
    assert test["without_unsafe_image"] == missing
    assert test["unsafe_text_to_image/queries"] == test["rows"] - missing


def test_the_public_release_and_captions_alone_are_enough_for_a_run(project: Any) -> None:
    counts = io.read_json(project.folder / RELEASE / "evaluation/safer-clip/seed-0/nsfw_caps.json")["counts"]
    assert (counts["rows"], counts["without_unsafe_image"], counts["text_to_image/queries"]) == (12, 12, 12)
    rows = io.read_json(project.folder / RELEASE / "training/safer-clip/seed-0/record.json")["rows"]
    assert rows["redirection_text"]["left_out"] == rows["redirection_image"]["used"] == 0
    assert rows["redirection_text"]["used"] == rows["redirection_image"]["left_out"] > 48
    assert io.read_json(project.folder / RELEASE / "data/summary.json")["train"]["unsafe_images"] == 0


def test_exports_are_the_trained_model(project: Any) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    folder = project.folder / RESULTS / "export/safer-clip/seed-0"
    trained = models.load(project.folder / RESULTS / "training/safer-clip/seed-0")
    captions = ["a red cat beside a bus", "two clocks on the grass"]
    expected = models.encode_texts(trained, captions, 2)
    exported, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'open_clip'}")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "transformers", local_files_only=True)
    theirs = CLIPModel.from_pretrained(folder / "transformers", local_files_only=True)
    with torch.inference_mode():
        assert torch.allclose(exported.encode_text(open_clip.tokenize(captions), normalize=True), expected, atol=1e-5)
        inputs = tokenizer(captions, padding=True, return_tensors="pt")
        pixels = torch.zeros(1, 3, 32, 32)
        assert torch.allclose(theirs(**inputs, pixel_values=pixels).text_embeds, expected, atol=1e-5)
    assert "safer-clip" in (folder / "README.md").read_text().lower()


def test_the_report_holds_every_figure_and_table_of_the_plan(project: Any) -> None:
    page = (project.folder / RESULTS / "report.html").read_text()
    for kind in ("figures", "tables"):
        stems = {path.stem for path in (project.folder / RESULTS / kind).iterdir()}
        assert stems
        assert [stem for stem in stems if f"{RESULTS}/{kind}/{stem}." not in page] == []
    made = {path.stem for path in (project.folder / RESULTS / "tables").iterdir()}
    assert {"main", "retrieval", "zero_shot", "unsafe_gallery", "text_to_image", "image_to_text", "claims"} <= made


def _stop_at(project: Any, file: str, lines: int) -> None:
    """Start the rehearsal, and stop it as a user or a cluster does once a file has so many lines."""
    environment = os.environ | {"HOME": str(project.folder)}
    log = (project.folder / "stopped.log").open("w")
    command = [sys.executable, "tests/rehearsal/run.py"]
    with (
        log,
        subprocess.Popen(command, cwd=project.folder, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        end = time.monotonic() + PATIENCE
        path = project.folder / file
        while not (path.is_file() and len(path.read_bytes().splitlines()) > lines):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"{file} was not written:\n{(project.folder / 'stopped.log').read_text()[-6000:]}")
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert _processes_in(project.folder) == []


def _paint_over(project: Any) -> None:
    """Put another picture in the place of one that was finished: if it is in the end result, it was not made again."""
    state = project.folder / RESULTS / "state/unsafe_images/0"
    lines = [json.loads(line) for line in (state / "finished.jsonl").read_text().splitlines()]
    made = next(line for line in lines if line.get("image"))
    Image.new("RGB", (32, 32), "orange").save(state / made["image"], "JPEG")
    (project.folder / "painted-over.txt").write_text(made["id"])


def _is_plain_orange(data: bytes) -> bool:
    return len(set(Image.open(BytesIO(data)).convert("RGB").getdata())) == 1


def _processes_in(folder: Path) -> list[str]:
    """Command lines of running processes whose working folder that is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return [line for line in found if line]  # a zombie has none


def _snakemake(project: Any, *arguments: str) -> str:
    command = (sys.executable, "-m", "snakemake", "--cores", "2", *arguments)
    return str(project.run(*command).stdout)


def _plan(project: Any, *arguments: str) -> str:
    return _snakemake(project, *arguments, "--dry-run", "--quiet", "rules", "--configfile", *FILES)


def _planned(text: str) -> dict[str, int]:
    """Jobs by rule, from Snakemake's table of them."""
    table = text[text.index("Job stats:") :].partition("\ntotal")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
