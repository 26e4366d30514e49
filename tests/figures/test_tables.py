"""Every number of every table, computed anew from the files that it says it comes from."""

from __future__ import annotations

import csv
import json
import statistics as standard
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saferclip import io
from saferclip.figures import paper, table
from saferclip.figures.layout import Table, words
from saferclip.figures.results import Estimate
from saferclip.figures.tables import model

TITLES = {"clip": "CLIP", "safe-clip": "Safe-CLIP", "safer-clip": "SaFeR-CLIP"}
BENCHMARKS = {"ViSU-mini": "test", "NSFW-Caps-mini": "nsfw_caps"}
DIRECTIONS = {
    "T→V": "text_to_image",
    "V→T": "image_to_text",
    "T*→V∪V*": "unsafe_text_to_image",
    "V*→T∪T*": "unsafe_image_to_text",
}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def written(run: Any, tmp_path: Path) -> Callable[[str], list[dict[str, str]]]:
    """A function name -> rows of the table's CSV."""

    def write(name: str) -> list[dict[str, str]]:
        table.write(name, run.settings, run.folder, tmp_path / name)
        return read_csv(tmp_path / f"{name}.csv")

    return write


def built(run: Any, name: str) -> Table:
    return table.build(name, run.settings, run.folder)


def assert_estimate(
    run: Any, row: dict[str, str], column: str, source: tuple[str, str, str], unit: str = " [%]"
) -> None:
    """Mean and sd over seeds are those of the records; an interval, where there is one, holds the mean."""
    method, benchmark, metric = source
    values = [run.value(method, seed, benchmark, metric) for seed in run.settings.runs[method]]
    assert float(row[column + unit]) == pytest.approx(sum(values) / len(values))
    if len(values) > 1:
        assert float(row[f"{column} sd{unit}"]) == pytest.approx(standard.stdev(values))
    else:
        assert not row.get(f"{column} sd{unit}")
    if row.get(f"{column} low{unit}"):
        assert float(row[f"{column} low{unit}"]) <= sum(values) / len(values) <= float(row[f"{column} high{unit}"])


def test_main_has_both_benchmarks_zero_shot_and_the_papers_own_numbers(run: Any, written: Any) -> None:
    rows = written("main")
    assert [row["method"] for row in rows] == list(TITLES.values())
    published = {"clip": (2.8, 3.8, 74.3), "safe-clip": (14.5, 35.4, 52.2), "safer-clip": (27.9, 79.5, 60.2)}
    for row, method in zip(rows, TITLES, strict=True):
        for benchmark in ("test", "nsfw_caps"):
            for metric in ("text_to_image/recall@1", "unsafe_text_to_image/recall@1"):
                assert_estimate(run, row, f"{benchmark}/{metric}", (method, benchmark, metric))
                assert row[f"{benchmark}/{metric} low [%]"]
        assert_estimate(run, row, "zero_shot/mean/accuracy", (method, "zero_shot", "mean/accuracy"))
        columns = ("paper/test [%]", "paper/nsfw_caps [%]", "paper/zero_shot [%]")
        assert tuple(float(row[column]) for column in columns) == published[method]
    groups = [column.group for column in built(run, "main").columns]
    assert groups == ["", *["ViSU-mini"] * 2, *["NSFW-Caps-mini"] * 2, "6 zero-shot sets", *["paper, ViT-L/14"] * 3]


def test_main_says_how_its_numbers_come_about(run: Any) -> None:
    text = built(run, "main").text
    assert "mean ± standard deviation over 3 seeds [95% interval, bootstrap over queries, 200 resamples]" in text
    assert "SaFeR-CLIP, AAAI 2026, arXiv 2511.16743" in text


def test_retrieval_has_every_direction_of_every_method(run: Any, written: Any) -> None:
    rows = written("retrieval")
    assert len(rows) == 2 * 4 * 3
    methods = {title: method for method, title in TITLES.items()}
    seen = set()
    for row in rows:
        benchmark, direction = BENCHMARKS[row["benchmark"]], DIRECTIONS[row["direction"]]
        method = methods[row["method"]]
        seen.add((benchmark, direction, method))
        for k in (1, 10, 20):
            assert_estimate(run, row, f"recall@{k}", (method, benchmark, f"{direction}/recall@{k}"))
        if direction.startswith("unsafe"):
            assert_estimate(run, row, "unsafe_share", (method, benchmark, f"{direction}/unsafe_share"))
        else:
            assert row["unsafe_share [%]"] == ""
    assert len(seen) == 24


def test_unsafe_gallery_has_both_directions_beside_the_paper(run: Any, written: Any) -> None:
    published = {"clip": (91.6, 94.1, 96.3), "safe-clip": (21.1, 13.0, 14.2), "safer-clip": (18.5, 10.7, 3.1)}
    for row, method in zip(written("unsafe_gallery"), TITLES, strict=True):
        for direction in ("text_to_image", "image_to_text"):
            metric = f"{direction}/unsafe_share"
            assert_estimate(run, row, f"gallery/{metric}", (method, "gallery", metric))
        columns = ("paper/nsfw_urls [%]", "paper/nudenet [%]", "paper/smid [%]")
        assert tuple(float(row[column]) for column in columns) == published[method]
    shown = built(run, "unsafe_gallery")
    assert "n = 60 unsafe queries in each direction" in shown.text
    assert {column.group for column in shown.columns} == {
        "",
        "this run, unsafe first",
        "paper, ViT-L/14, V*→T∪T*",
    }


def test_real_galleries_have_a_row_for_each_set_and_method_beside_the_papers(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    other = make_run(galleries=("nudenet", "my_own"))
    table.write("unsafe_gallery", other.settings, other.folder, tmp_path / "unsafe_gallery")
    rows = read_csv(tmp_path / "unsafe_gallery.csv")
    published = {"NudeNet": ["94.1", "13", "10.7"], "my_own": [""] * 3, "Mean of 2 sets": [""] * 3}
    assert [(row["set"], row["method"]) for row in rows] == [
        (name, title) for name in published for title in TITLES.values()
    ]
    assert [row["paper [%]"] for row in rows] == [value for values in published.values() for value in values]
    keys = ["nudenet/"] * 3 + ["my_own/"] * 3 + [""] * 3
    for row, method, prefix in zip(rows, [*TITLES] * 3, keys, strict=True):
        for direction in ("text_to_image", "image_to_text"):
            metric = f"{direction}/unsafe_share"
            assert_estimate(other, row, f"gallery/{metric}", (method, "gallery", f"{prefix}{metric}"))
        assert row["unsafe"] == ("60, 60" if prefix else "")


def test_public_zero_shot_sets_say_what_they_are_measured_by(make_run: Callable[..., Any], tmp_path: Path) -> None:
    measures = ["mean_per_class", "accuracy"] * 3
    other = make_run(measures=measures)
    table.write("zero_shot", other.settings, other.folder, tmp_path / "zero_shot")
    rows = read_csv(tmp_path / "zero_shot.csv")
    shown = [row["measure"] for row in rows]
    assert shown == ["mean per class", "all images"] * 3 + [""] * 2
    for row, name in zip(
        rows, [*json.loads((other.folder / "test_sets/zero_shot.json").read_text()), "mean"], strict=False
    ):
        for method in TITLES:
            assert_estimate(other, row, method, (method, "zero_shot", f"{name}/accuracy"))
    assert "Mean of 11 sets (paper" in rows[-1]["set"]
    assert "mean per class or over all images" in built(other, "zero_shot").text
    assert "11 zero-shot sets, which it does not name" in built(other, "main").text


def test_zero_shot_has_a_row_for_each_set_their_mean_and_the_papers_mean(run: Any, written: Any) -> None:
    rows = written("zero_shot")
    sets = json.loads((run.folder / "test_sets" / "zero_shot.json").read_text())
    for row, (name, task) in zip(rows, sets.items(), strict=False):
        assert (row["set"], int(row["classes"])) == (task["title"], len(task["classes"]))
        assert int(row["images"]) == sum(6 + 3 * label for label in range(len(task["classes"])))
        for method in TITLES:
            assert_estimate(run, row, method, (method, "zero_shot", f"{name}/accuracy"))
    mean, published = rows[len(sets) :]
    assert mean["set"] == "Mean of 6 sets"
    for method in TITLES:
        accuracies = [run.value(method, 0, "zero_shot", f"{name}/accuracy") for name in sets]
        assert run.value(method, 0, "zero_shot", "mean/accuracy") == pytest.approx(sum(accuracies) / len(accuracies))
        assert_estimate(run, mean, method, (method, "zero_shot", "mean/accuracy"))
    assert "paper, ViT-L/14" in published["set"]
    assert [float(published[f"{method} [%]"]) for method in TITLES] == [74.3, 52.2, 60.2]


def test_drift_has_every_measure_with_three_decimals(run: Any, written: Any) -> None:
    rows = written("drift")
    metrics = ("safe_text/cosine", "safe_image/cosine", "alignment", "uniformity_text", "uniformity_image")
    for row, method in zip(rows, TITLES, strict=True):
        for metric in metrics:
            assert_estimate(run, row, metric, (method, "drift", metric), unit="")
            assert bool(row.get(f"{metric} low")) == (not metric.startswith("uniformity"))
    shown = built(run, "drift")
    assert shown.words()[0][1] == "1.000 [−0.500, 2.250]"
    assert "n = 120" in shown.text
    assert "the ends of intervals of cosines and alignment are the means of the seeds' own" in shown.text


def test_safeground_has_scores_and_preferences_of_both_benchmarks(run: Any, written: Any) -> None:
    rows = written("safeground")
    assert len(rows) == 2 * 3
    for row, (benchmark, method) in zip(rows, [(b, m) for b in ("test", "nsfw_caps") for m in TITLES], strict=True):
        for name in ("text", "image", "safe_query", "unsafe_query", "group"):
            assert_estimate(run, row, f"safeground/{name}", (method, benchmark, f"safeground/{name}"))
            assert row[f"safeground/{name} low [%]"]
        for name in ("safe_text", "unsafe_text", "safe_image", "unsafe_image"):
            assert_estimate(run, row, f"preference/{name}", (method, benchmark, f"preference/{name}"))
            assert row[f"preference/{name} high [%]"]


def test_calibration_compares_the_base_model_with_the_targets(run: Any, written: Any) -> None:
    rows = written("calibration")
    assert len(rows) == 9
    ranges = {"T*→V∪V* R@1 (%)": "≤ 10", "V*→T∪T* R@1 (%)": "≤ 10", "T→V R@1 (%)": "60 to 85"}
    for row in rows[:8]:
        benchmark = BENCHMARKS[row["benchmark"]]
        cosine = "0.52 to 0.68" if benchmark == "test" else "0.72 to 0.88"
        assert row["target"] == ranges.get(row["quantity"], cosine)
        direction = DIRECTIONS.get(row["quantity"].split()[0])
        metric = f"{direction}/recall@1" if direction else "paired_caption_similarity"
        value = run.value("clip", 0, benchmark, metric)
        assert float(row["measured"]) == pytest.approx(value)
        low, high = (0, 10) if "≤" in row["target"] else map(float, row["target"].split(" to "))
        assert row["within"] == str(low <= value <= high).lower()
    assert rows[8]["target"] == "60 to 90"
    assert float(rows[8]["measured"]) == pytest.approx(run.value("clip", 0, "zero_shot", "mean/accuracy"))


@pytest.mark.parametrize(
    ("low", "high", "value", "met"),
    [
        (None, 10.0, 10.0, True),
        (None, 10.0, 10.01, False),
        (60.0, 85.0, 60.0, True),
        (60.0, 85.0, 59.9, False),
        (60.0, 85.0, 85.0, True),
        (60.0, None, 99.0, True),
    ],
)
def test_a_target_holds_its_bounds(low: float | None, high: float | None, value: float, met: bool) -> None:
    assert model.Target(quantity="q", benchmark="b", metric="m", low=low, high=high).met(value) is met


def test_a_missed_target_is_said_to_be_missed(make_run: Callable[..., Any], tmp_path: Path) -> None:
    other = make_run(benchmarks=("test",))
    path = other.folder / "evaluation/clip/seed-0/test.json"
    record = json.loads(path.read_text())
    record["metrics"]["paired_caption_similarity"]["value"] = 0.7
    io.write_json(path, record)
    table.write("calibration", other.settings, other.folder, tmp_path / "calibration")
    rows = read_csv(tmp_path / "calibration.csv")
    assert {row["quantity"]: row["within"] for row in rows}["cosine of safe and unsafe caption"] == "false"


def test_mining_has_means_and_quantiles_of_both_targets(run: Any, written: Any) -> None:
    neighbours = io.read_table(run.folder / "mining" / "neighbours.parquet").to_pydict()
    paired, nearest = written("mining")
    for row, column in ((paired, "paired_similarity"), (nearest, "similarity")):
        values = sorted(neighbours[column])
        assert row["captions"] == "600"
        assert float(row["mean"]) == pytest.approx(sum(values) / 600)
        assert float(row["quantile 0.5"]) == pytest.approx(standard.median(values))
    own = sum(left == right for left, right in zip(neighbours["unsafe_id"], neighbours["safe_id"], strict=True))
    text = built(run, "mining").text
    assert f"For {100 * own / 600:.1f}% of the unsafe captions the nearest safe caption is the paired one" in text
    assert "easy n = 200" in text


def test_datasheet_shows_every_entry(written: Any) -> None:
    rows = [(row["section"], row["item"], row["value"]) for row in written("datasheet")]
    assert rows[:3] == [
        ("Pairs in category", "weapons", "40"),
        ("Pairs in category", "drugs & alcohol", "40"),
        ("Pairs in category", "self harm", "40"),
    ]
    assert ("Rejected by filter", "image not unsafe", "8") in rows
    assert ("Candidates", "", "200") in rows
    assert ("Cosine of safe and unsafe caption", "NSFW-Caps-mini, mean", "0.81") in rows
    assert ("Cosine of safe and unsafe caption", "training split, 5% quantile", "0.4") in rows
    assert ("Intended use", "", "testing redirection; 100% synthetic_data | not for training") in rows
    assert not any("commit" in " ".join(row) for row in rows)


def test_learning_rates_are_those_of_the_selection(written: Any) -> None:
    chosen = [
        (row["method"], row["learning_rate"], float(row["score [%]"]), row["chosen"])
        for row in written("learning_rates")
    ]
    assert chosen == [
        ("Safe-CLIP", "0.0003", 20.0, "false"),
        ("Safe-CLIP", "0.001", 31.25, "true"),
        ("Safe-CLIP", "0.003", 12.5, "false"),
        ("SaFeR-CLIP", "0.0003", 40.0, "false"),
        ("SaFeR-CLIP", "0.001", 52.5, "true"),
        ("SaFeR-CLIP", "0.003", 50.0, "false"),
    ]


def test_all_four_formats_are_written_and_the_same_each_time(run: Any, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        table.write("main", run.settings, run.folder, tmp_path / folder / "main")
    first = sorted((tmp_path / "first").iterdir())
    assert [path.name for path in first] == ["main.csv", "main.html", "main.md", "main.tex"]
    for path in first:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert "SaFeR-CLIP" in path.read_text(encoding="utf-8")


def test_one_seed_and_an_ablation_are_shown_too(make_run: Callable[..., Any]) -> None:
    runs = {"clip": (5,), "safer-clip": (5,), "no-curriculum": (5,)}
    other = make_run(benchmarks=("test",), runs=runs)
    shown = built(other, "retrieval")
    assert list(dict.fromkeys(row[2] for row in shown.rows)) == ["CLIP", "SaFeR-CLIP", "no-curriculum"]
    assert all(cell.sd is None for row in shown.rows for cell in row if isinstance(cell, Estimate))
    # The paper has no numbers for it.
    assert words(shown.rows[2][-1]) == "–"
    assert "Values: one seed [95% interval" in shown.text
    assert "means of the seeds' own" not in built(other, "safeground").text


def test_the_papers_numbers_are_those_of_the_paper() -> None:
    published = paper.read()
    assert published.comparison == {
        "clip": {"test": 2.8, "nsfw_caps": 3.8, "zero_shot": 74.3},
        "safe-clip": {"test": 14.5, "nsfw_caps": 35.4, "zero_shot": 52.2},
        "safer-clip": {"test": 27.9, "nsfw_caps": 79.5, "zero_shot": 60.2},
    }
    assert published.unsafe_image_to_text == {
        "clip": {"nsfw_urls": 91.6, "nudenet": 94.1, "smid": 96.3},
        "safe-clip": {"nsfw_urls": 21.1, "nudenet": 13.0, "smid": 14.2},
        "safer-clip": {"nsfw_urls": 18.5, "nudenet": 10.7, "smid": 3.1},
    }


def test_gaps_that_withheld_images_leave_are_shown_as_gaps(make_run: Callable[..., Any]) -> None:
    other = make_run(benchmarks=("test", "zero_shot"), runs={"clip": (0,), "safer-clip": (0,)})
    for method in ("clip", "safer-clip"):
        path = other.folder / f"evaluation/{method}/seed-0/test.json"
        record = json.loads(path.read_text())
        record["metrics"] = {name: value for name, value in record["metrics"].items() if not name.startswith("unsafe_")}
        io.write_json(path, record)
        path = path.with_name("zero_shot.json")
        record = json.loads(path.read_text())
        del record["metrics"]["counts/accuracy"]
        io.write_json(path, record)
    assert [row[2] for row in built(other, "main").rows] == [None, None]
    assert "5 zero-shot sets" in [column.group for column in built(other, "main").columns]
    assert "Counts" not in [row[0] for row in built(other, "zero_shot").rows]
    assert [row[1] for row in built(other, "calibration").rows if "∪" in str(row[1])] == []
    remarks = [row[-2] for row in built(other, "claims").rows]
    assert "this run could not measure unsafe_text_to_image/recall@1 on 'test'" in remarks
    unsafe = [row for row in built(other, "retrieval").rows if "*" in str(row[1])]
    assert all(cell is None for row in unsafe for cell in row[3:])
