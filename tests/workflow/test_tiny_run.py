"""The whole graph for real: config/tiny.yaml through Snakemake, its report in a browser, its files through DVC.

The run is made once for this file, so its tests belong on one worker: pytest --dist loadfile.
"""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESULTS = Path("results/tiny")


@pytest.fixture(scope="module")
def tiny(project_copy: Any) -> Any:
    """A project in which the tiny run was made."""
    project = project_copy("tiny")
    project.snakemake(config="tiny")
    return project


def test_everything_is_there(tiny: Any) -> None:
    run = tiny.folder / RESULTS
    assert (run / "report.html").is_file()
    for method, seeds in {"clip": [0], "safe-clip": [0, 1], "safer-clip": [0, 1]}.items():
        for seed in seeds:
            for benchmark in ("test", "nsfw_caps", "gallery", "zero_shot", "drift", "geometry", "probes", "robustness"):
                record = json.loads((run / f"evaluation/{method}/seed-{seed}/{benchmark}.json").read_text())
                assert (record["method"], record["seed"], record["benchmark"]) == (method, seed, benchmark)
                assert record["metrics"]
    with (run / "tables/main.csv").open() as file:
        assert len(list(csv.reader(file))) > 3
    assert {file.suffix for file in (run / "figures").iterdir()} == {".pdf", ".png"}


def test_a_second_run_does_nothing(tiny: Any) -> None:
    before = _times(tiny)
    assert "Nothing to be done" in tiny.snakemake(config="tiny")
    assert _times(tiny) == before


def test_a_step_by_hand_gives_the_same_bytes(tiny: Any) -> None:
    """As docs/workflow.md says: the settings printed, the command called, no Snakemake."""
    settings = tiny.run("saferclip", "settings", "mining", "--config", "config/tiny.yaml").stdout
    files = ("--train", f"{RESULTS}/data/train.parquet", "--embeddings", f"{RESULTS}/embedding/frozen.safetensors")
    tiny.run("saferclip", "mining", "--settings", settings, *files, "--output", "by-hand")
    table = "neighbours.parquet"
    assert (tiny.folder / "by-hand" / table).read_bytes() == (tiny.folder / RESULTS / "mining" / table).read_bytes()


def test_the_report_needs_no_network(tiny: Any) -> None:
    page = (tiny.folder / RESULTS / "report.html").read_text()
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*["']?(https?:[^"'\s>]+)""", page)
    assert loaded == []


def test_the_report_holds_every_figure_and_table(tiny: Any) -> None:
    results, categories = _report_data(tiny)
    names = {Path(path).name for path in results}
    made = {f.name for f in (tiny.folder / RESULTS / "figures").iterdir()}
    made |= {f.name for f in (tiny.folder / RESULTS / "tables").iterdir() if f.suffix in (".html", ".csv")}
    assert names == made
    assert set(categories) == {"Figures", "Tables"}
    for path, entry in results.items():
        assert entry["caption"].strip(), f"{path}: no caption"
        assert entry["labels"], path


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_every_figure_and_table_is_drawn_in_a_browser(tiny: Any) -> None:
    """Clicks through the whole report, as a reader would, in a browser without network."""
    note = re.search(r'<pre id="outcome">(.*?)</pre>', _browse(tiny, _CLICK_THROUGH), re.DOTALL)
    assert note, "the page did not get to its end"
    outcome = json.loads(html.unescape(note[1]))
    assert outcome["errors"] == []
    assert outcome["shown"] == dict.fromkeys(_report_data(tiny)[0], True)


def test_a_clone_with_pulled_artifacts_has_nothing_to_do(tiny: Any, pulled: Any) -> None:
    assert "Nothing to be done" in pulled.plan(config="tiny").text
    assert (pulled.folder / RESULTS / "report.html").read_bytes() == (
        tiny.folder / RESULTS / "report.html"
    ).read_bytes()


def test_dvc_and_snakemake_agree(pulled: Any) -> None:
    assert "up to date" in pulled.run("dvc", "status").stdout
    assert "up to date" in pulled.run("dvc", "repro").stdout


def test_after_a_pull_one_change_runs_only_what_depends_on_it(pulled: Any) -> None:
    figures = pulled.plan(config=pulled.variant("dpi", {"figures.dpi": 70}, "tiny"))
    assert set(figures.counts) == {"figure", "table", "report", "all"}
    rate = pulled.plan(config=pulled.variant("rate", {"methods.safe-clip.learning_rate": 2e-3}, "tiny"))
    assert {job["method"] for job in rate.of("training")} == {"safe-clip"}
    assert {job["method"] for job in rate.of("evaluation")} == {"safe-clip"}
    assert {"data", "embedding", "mining", "benchmark"}.isdisjoint(rate.counts)


def test_a_forced_pull_brings_the_delivered_run_back(pulled: Any) -> None:
    (pulled.folder / RESULTS / "mining/summary.json").write_text("{}")
    (pulled.folder / ".snakemake/metadata/another-run").write_text("{}")
    assert pulled.run("dvc", "pull", check=False).returncode != 0  # never silently over local changes
    pulled.run("dvc", "pull", "--force")
    assert "Nothing to be done" in pulled.plan(config="tiny").text


def test_a_new_state_is_recorded_for_others(pulled: Any, project_copy: Any) -> None:
    """Run after a pull, so the pulled files really are all that the step needs; versioned; pulled by another clone."""
    figure = RESULTS / "figures/main_comparison.png"
    before = (pulled.folder / figure).read_bytes()
    pulled.variant("tiny", {"figures.dpi": 70}, "tiny")
    pulled.snakemake(str(figure), config="tiny")
    pulled.run("dvc", "commit", "--force", "tiny")
    pulled.run("dvc", "push")
    _save(pulled, "another resolution")
    other = project_copy("other", empty=True)
    other.run("git", "clone", "--quiet", str(pulled.folder), ".")
    other.run("dvc", "pull")
    assert (other.folder / figure).read_bytes() == (pulled.folder / figure).read_bytes() != before
    assert "Nothing to be done" in other.plan(str(figure), config="tiny").text
    assert "up to date" in other.run("dvc", "status").stdout


def test_chosen_learning_rates_come_into_the_report(tiny: Any) -> None:
    """Last, since it changes the run: the search on request, then its choice as one more table."""
    tiny.snakemake("learning_rate_selection", config="tiny")
    with (tiny.folder / "config/tiny.learning_rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["learning_rate"])) for row in rows] == [
        (method, rate) for method in ("safe-clip", "safer-clip") for rate in (1e-3, 3e-3)
    ]
    assert [row["method"] for row in rows if row["chosen"] == "True"] == ["safe-clip", "safer-clip"]
    assert list((tiny.folder / RESULTS).glob("learning_rate_selection/*/*/*.safetensors")) == []
    tiny.snakemake(config="tiny")
    assert f"{RESULTS}/tables/learning_rates.html" in _report_data(tiny)[0]


@pytest.fixture(scope="module")
def pulled(tiny: Any, project_copy: Any) -> Iterator[Any]:
    """A clone of the tiny project, with what `dvc pull` brings and nothing else."""
    tiny.version("tiny")
    tiny.run("dvc", "push")
    _save(tiny, "results")
    clone = project_copy("clone", empty=True)
    clone.run("git", "clone", "--quiet", str(tiny.folder), ".")
    assert not (clone.folder / RESULTS).exists()
    clone.run("dvc", "pull")
    return clone


def _save(project: Any, message: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    project.run("git", "add", "--all")
    project.run("git", *identity, "commit", "--quiet", "--message", message)


def _times(project: Any) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in (project.folder / RESULTS).rglob("*") if file.is_file()}


def _report_data(project: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Snakemake's report page knows: its results and its categories."""
    page = (project.folder / RESULTS / "report.html").read_text()
    results = re.search(r"var results = (\{.*?\});\n", page, re.DOTALL)
    categories = re.search(r"var categories = (\{.*?\});\n", page, re.DOTALL)
    assert results and categories
    return json.loads(results[1]), json.loads(categories[1])


def _browse(project: Any, script: str) -> str:
    """The report's DOM after a script has run in it."""
    page = (project.folder / RESULTS / "report.html").read_text()
    copy = project.folder / "browsed.html"
    # The last </body>: the page's own scripts hold others, as text.
    body, end, rest = page.rpartition("</body>")
    copy.write_text(f"{body}<script>{script}</script>{end}{rest}")
    assert CHROMIUM
    return str(
        project.run(
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={project.folder / 'browser'}",
            "--virtual-time-budget=60000",
            "--dump-dom",
            copy.as_uri(),
        ).stdout
    )


# Opens every result by the page's own buttons; writes down whether it was drawn, and every script error.
_CLICK_THROUGH = """
const outcome = { errors: [], shown: {} };
window.addEventListener("error", (event) => outcome.errors.push(String(event.message)));
const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
const click = async (element) => {
  element.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  await pause();
};
const large = (element) => {
  const box = element.getBoundingClientRect();
  return box.width > 100 && box.height > 100;
};
const drawn = (result) => {
  const element = [...document.querySelectorAll("img, iframe")].find((item) => item.src === result.data_uri);
  if (!element) return false;
  return large(element) && (element.tagName === "IFRAME" || (element.complete && element.naturalWidth > 100));
};
const open = async (button) => {
  if (button.hasAttribute("download")) {
    const [path, result] = Object.entries(results).find((entry) => entry[1].data_uri === button.href);
    outcome.shown[path] = result.data_uri.length > 100;
    return;
  }
  await click(button);
  outcome.shown[app.state.resultPath] = drawn(results[app.state.resultPath]);
};
const rows = () => [...document.querySelectorAll("nav tbody tr")];
const openAll = async () => {
  for (let number = 0; number < rows().length; number++) {
    await open(rows()[number].querySelector("[role=group] a"));
  }
};
(async () => {
  await pause();
  for (const category of Object.keys(categories)) {
    app.setView({ navbarMode: "menu" });
    await pause();
    await click([...document.querySelectorAll("nav li a")].find((link) => link.innerText.trim() === category));
    const formats = [...document.querySelectorAll("nav input[type=radio]")].map((radio) => radio.id);
    if (!formats.length) await openAll();
    for (const format of formats) {
      await click(document.getElementById(format));
      await openAll();
    }
  }
})()
  .catch((error) => outcome.errors.push(String(error)))
  .finally(() => {
    const note = document.createElement("pre");
    note.id = "outcome";
    note.textContent = JSON.stringify(outcome);
    document.body.append(note);
  });
"""
