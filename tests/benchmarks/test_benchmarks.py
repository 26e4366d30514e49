"""The benchmarks, at toy sizes: the ways that they compare give the same results. How fast they are is not tested."""

from __future__ import annotations

import csv
import json
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, str]]
MODULES = (
    "common",
    "mining",
    "approximate",
    "evaluation",
    "scene_rendering",
    "training_step",
    "image_loading",
    "whole_run",
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Rows]:
    """A function that starts a benchmark as a user would, and returns the rows of its CSV."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    threads = torch.get_num_threads()

    def run(name: str, *arguments: str) -> Rows:
        output = tmp_path / "numbers" / f"{name}.csv"
        monkeypatch.setattr(
            sys, "argv", [f"benchmarks/{name}.py", *arguments, "--rounds", "2", "--output", str(output)]
        )
        module: ModuleType = __import__(name)
        try:
            module.main()
        finally:
            torch.set_num_threads(threads)
            for loaded in MODULES:
                sys.modules.pop(loaded, None)
        with output.open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return run


def test_every_way_of_mining_finds_the_same_neighbours(benchmark: Callable[..., Rows]) -> None:
    pytest.importorskip("faiss", reason="compared with where it is installed: it is an extra")
    rows = benchmark("mining", "300")
    agree = {row["way"]: row["agree"] for row in rows if row["agree"]}
    assert {"mining", "float64", "plain", "faiss"} <= agree.keys()
    assert set(agree.values()) == {"100.0"}
    assert float(rows[-1]["peak_mb"]) > 0
    assert {row["torch"] for row in rows} == {torch.__version__.partition("+")[0]}
    assert all(row["processor"] and row["date"] for row in rows)


def test_the_approximate_index_reaches_the_recall_that_was_asked_for(benchmark: Callable[..., Rows]) -> None:
    pytest.importorskip("faiss", reason="it is an extra")
    rows = benchmark("approximate", "400")
    assert len(rows) == 2
    assert all(float(row["recall"]) > 90 and float(row["agree"]) > 90 for row in rows)


def test_every_way_of_evaluating_finds_the_same_ranks(benchmark: Callable[..., Rows]) -> None:
    rows = benchmark("evaluation", "70", "--gallery", "90")
    agree = {row["way"]: row["agree"] for row in rows if row["agree"]}
    assert agree == {"evaluation": "100.0", "loop": "100.0", "CLIP_benchmark": "100.0"}


@pytest.mark.parametrize("option", [(), ("--fp32",)])
def test_every_way_of_training_has_the_same_loss(
    benchmark: Callable[..., Rows], option: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It ends with an error where losses differ; memory would take six processes that each import transformers."""
    import common
    import training_step

    monkeypatch.setattr(common, "costs", lambda command: {"peak_mb": len(command)})
    # At full size minutes on a processor without bf16.
    monkeypatch.setattr(training_step, "SIDES", dict.fromkeys(training_step.SIDES, 64))
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "small-for-this-test.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path)
    rows = benchmark("training_step", "2", "--model", "small-for-this-test", *option)
    assert [row["way"] for row in rows][:2] == ["plain", "cached"]
    losses = {row["way"]: float(row["first_loss"]) for row in rows}
    assert all(abs(loss - losses["plain"]) < 0.05 for loss in losses.values())
    in_half = losses.keys() & {"autocast", "training bf16"}
    assert len(in_half) == (0 if option else 2)
    assert in_half <= {way for way, loss in losses.items() if loss != losses["plain"]}  # bf16 rounds otherwise


def test_scenes_are_drawn_in_every_style(benchmark: Callable[..., Rows]) -> None:
    rows = benchmark("scene_rendering", "2")
    assert len({row["style"] for row in rows}) == len(rows) > 1
    assert all(float(row["to_afresh"]) > 0 for row in rows)


def test_a_finished_run_is_told_rule_by_rule(
    benchmark: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every command is taken to use 2 s of the processor within 1 s."""
    import common
    import whole_run

    run = tmp_path / "project/results/mini"
    for rule, values in {
        "training/a/seed-0": "8.5\t10",
        "training/a/seed-1": "9\t30.5",
        "learning_rates": "NA\t0",
    }.items():
        (run / "logs" / rule).parent.mkdir(parents=True, exist_ok=True)
        (run / "logs" / f"{rule}.tsv").write_text(f"cpu_time\ts\tmax_rss\n{values}\t-\n")
    (run / "report.html").touch()
    for file, (start, end) in {"mini/a": (100, 120), "mini/b": (90.5, 110), "other/c": (0, 500)}.items():
        remembered = run.parents[1] / ".snakemake/metadata" / b64encode(f"results/{file}".encode()).decode()
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"starttime": start, "endtime": end}))
    commands: list[list[str]] = []
    monkeypatch.setattr(whole_run, "ROOT", run.parents[1])
    monkeypatch.setattr(
        common, "costs", lambda command: commands.append(command) or {"wall": 1.0, "seconds": 2.0, "peak_mb": 3}
    )
    monkeypatch.setenv("PYTHONPATH", "")  # set by the benchmark, so put back afterwards
    rows = {row["what"]: row for row in benchmark("whole_run")}
    names = ("jobs", "seconds", "cpu", "start_up")
    assert rows["whole run"]["seconds"] == "29.5"
    assert [rows["training"][name] for name in names] == ["2", "40.5", "17.5", "4.0"]
    assert [rows["learning_rates"][name] for name in names] == ["1", "0.0", "0.0", "0.0"]
    assert [float(rows["all rules"][name]) for name in names] == [3, 40.5, 17.5, 4]
    assert (rows["one figure"]["seconds"], rows["one figure"]["goal"]) == ("1.0", "10")
    assert any("import saferclip.training.train" in command for command in commands)


def test_make_starts_every_benchmark() -> None:
    """All scripts but the module that they share, which has nothing to start."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert {path for path in scripts if "__main__" not in (ROOT / "benchmarks" / f"{path}.py").read_text()} == {
        "common"
    }


def test_what_is_read_is_what_was_written_and_quicker_decoding_gives_other_pixels(
    benchmark: Callable[..., Rows],
) -> None:
    rows = {row["way"]: row for row in benchmark("image_loading", "100")}
    same = {way: float(row["same"]) for way, row in rows.items() if row["same"]}
    assert {way for way, share in same.items() if share == 100} == {"JPEG 1024 x 1024", "file", "batches"}
    assert {way for way, share in same.items() if share < 100} == {"draft", "torchvision"}
    assert all(float(row["per_core"]) > 0 and float(row["per_second"]) > 0 for row in rows.values())
