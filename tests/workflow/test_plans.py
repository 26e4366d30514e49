"""What Snakemake plans to do after one change: all that depends on it, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from projects import Plan

AGGREGATES = {"figure", "table", "report", "all"}


def test_a_finished_run_has_nothing_to_do(finished: Any) -> None:
    assert "Nothing to be done" in finished.plan().text


def test_a_figure_setting_redraws_and_does_nothing_else(finished: Any) -> None:
    config = finished.variant("dpi", {"figures.dpi": 90})
    assert set(finished.plan(config=config).counts) == AGGREGATES


def test_a_learning_rate_retrains_its_method_alone(finished: Any) -> None:
    config = finished.variant("rate", {"methods.safer-clip.learning_rate": 2.5e-3})
    plan = finished.plan(config=config)
    expected = [{"method": "safer-clip", "seed": seed} for seed in ("0", "1", "2")]
    assert sorted(plan.of("training"), key=str) == expected
    assert sorted(plan.of("evaluation"), key=str) == expected
    assert set(plan.counts) == {"training", "evaluation", "tradeoff", *AGGREGATES}


def test_a_further_method_runs_beside_the_others(finished: Any) -> None:
    methods = yaml.safe_load((finished.folder / "config/mini.yaml").read_text())["methods"]
    config = finished.variant("more", {"methods.ablation": methods["safer-clip"] | {"curriculum": "none"}})
    plan = finished.plan(config=config)
    assert {job["method"] for job in plan.of("training")} == {"ablation"}
    assert {job["method"] for job in plan.of("evaluation")} == {"ablation"}


def test_targets_are_mined_for_methods_that_ask_for_them_alone(finished: Any) -> None:
    """Once for all methods and seeds that share a rule; the paper's own are left alone."""
    methods = yaml.safe_load((finished.folder / "config/mini.yaml").read_text())["methods"]
    both, some = {"rule": "both"}, {"rule": "text", "pool": 0.1, "seed": 3}
    targets = {"one": both, "other": both, "third": some}
    changes = {f"methods.{name}": methods["safer-clip"] | {"targets": rule} for name, rule in targets.items()}
    plan = finished.plan(config=finished.variant("targets", changes))
    assert sorted(job["targets"] for job in plan.of("targets")) == ["both", "text-pool-0.1-seed-3"]
    assert {job["method"] for job in plan.of("training")} == set(targets)
    assert {"data", "embedding", "mining"}.isdisjoint(plan.counts)
    inputs = re.findall(r"\nrule training:\n    input: (.*)\n", plan.text)
    assert len(inputs) == 9
    assert sum("results/mini/targets/both/neighbours.parquet" in text for text in inputs) == 6
    assert not any("mining/neighbours.parquet" in text for text in inputs)


def test_a_further_seed_trains_only_that_seed(finished: Any) -> None:
    plan = finished.plan(config=finished.variant("seeds", {"seeds": [0, 1, 2, 3]}))
    assert {job["seed"] for job in plan.of("training")} == {"3"}
    assert {"data", "embedding", "mining", "benchmark"}.isdisjoint(plan.counts)


def test_an_evaluation_setting_evaluates_without_training(finished: Any) -> None:
    plan = finished.plan(config=finished.variant("bootstrap", {"evaluation.bootstrap": 77}))
    assert set(plan.counts) == {"evaluation", "tradeoff", *AGGREGATES}
    assert plan.counts["evaluation"] == 7


def test_the_untuned_models_evaluation_serves_all_others(finished: Any) -> None:
    """Where drift is measured: it hands over what they compare with."""
    handed_over = "results/mini/evaluation/clip/seed-0/embeddings.safetensors"
    whole = finished.plan("--forcerun", "evaluation")
    without = finished.plan(
        config=finished.variant("no-drift", {"evaluation.benchmarks": ["test", "gallery"], "tradeoff": None})
    )
    for plan, served in ((whole, {"safe-clip", "safer-clip"}), (without, set())):
        blocks = [
            block.partition("\n    output: ")[::2] for block in plan.text.split("\nrule evaluation:\n    input: ")[1:]
        ]
        assert len(blocks) == 7
        waiting = {re.search(r"wildcards: method=(\S+),", rest)[1] for inputs, rest in blocks if handed_over in inputs}
        assert waiting == served


def test_the_size_of_a_test_set_changes_no_training(finished: Any) -> None:
    plan = finished.plan(config=finished.variant("gallery", {"test_sets.embedded.zero_shot_images": 77}))
    assert set(plan.counts) == {"test_sets", "evaluation", "tradeoff", *AGGREGATES}


def test_a_delivered_choice_of_learning_rates_becomes_a_table(finished: Any) -> None:
    chosen = finished.folder / "config/mini.learning_rates.csv"
    delivered = chosen.read_text() if chosen.exists() else None
    try:
        chosen.write_text("method,learning_rate,score,chosen\nsafe-clip,7e-3,1.0,True\n")
        plan = finished.plan()
    finally:
        if delivered is None:
            chosen.unlink()
        else:
            chosen.write_text(delivered)
    assert plan.of("table") == [{"table": "learning_rates"}]
    assert set(plan.counts) == {"learning_rates", "table", "report", "all"}


def test_the_notation_of_a_setting_does_not_matter(finished: Any) -> None:
    """1e-3, 0.001 and another order of keys mean the same, so nothing is to be done."""
    file = finished.folder / "config/mini.yaml"
    text = file.read_text()
    assert "1.0e-3" in text
    (finished.folder / "config/notation.yaml").write_text(text.replace("1.0e-3", "0.001"))
    assert "Nothing to be done" in finished.plan(config="notation").text


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("figures/figure.py", {"figure", "report", "all"}),
        ("figures/table.py", {"table", "report", "all"}),
        ("evaluation/zero_shot.py", {"evaluation", "tradeoff", *AGGREGATES}),
        ("training/losses.py", {"training", "evaluation", "tradeoff", *AGGREGATES}),
        ("mining/nearest.py", {"mining", "training", "evaluation", "tradeoff", *AGGREGATES}),
        ("cli.py", None),
        ("config/reading.py", None),
    ],
)
def test_edited_code_runs_its_step_and_what_follows(finished: Any, module: str, rules: set[str] | None) -> None:
    file = finished.folder / "src/saferclip" / module
    text = file.read_bytes()
    try:
        file.write_bytes(text + b"\n# edited\n")
        plan = finished.plan()
    finally:
        file.write_bytes(text)
    assert set(plan.counts) == (rules or set())


def test_a_touched_file_with_the_same_content_changes_nothing(finished: Any) -> None:
    """As after git checkout or dvc pull: time stamps are new, contents are not."""
    for file in (finished.folder / "src/saferclip").rglob("*.py"):
        file.touch()
    (finished.folder / "results/mini/data/train.parquet").touch()
    assert "Nothing to be done" in finished.plan().text


def test_the_default_run_never_trains_the_base_model(finished: Any) -> None:
    plan = finished.plan("--forceall")
    assert "base_model" in plan.counts
    assert "base_model_training" not in plan.counts
    assert finished.plan("base_model_training").counts["base_model_training"] == 1


def test_learning_rates_are_searched_only_on_request(finished: Any) -> None:
    assert "learning_rate_training" not in finished.plan("--forceall").counts
    plan = finished.plan("learning_rate_selection", "--forcerun", "learning_rate_selection")
    trials = plan.of("learning_rate_training")
    assert {trial["method"] for trial in trials} == {"safe-clip", "safer-clip"}
    assert len(trials) == 2 * len({trial["rate"] for trial in trials})
    assert "training" not in plan.counts


def test_own_pairs_have_no_benchmarks_of_the_embedded_world(finished: Any) -> None:
    tables = {}
    for split in ("train", "validation", "test"):
        (finished.folder / f"{split}.csv").write_text("id\n")
        tables[split] = f"{split}.csv"
    config = finished.variant(
        "own",
        {
            "name": "own",
            "data": {"source": "local", "local": tables},
            "benchmark": None,
            "test_sets": None,
            "evaluation.benchmarks": ["test", "drift"],
            "tradeoff": None,
        },
    )
    plan = finished.plan(config=config)
    assert {"test_sets", "benchmark"}.isdisjoint(plan.counts)
    assert {"data", "mining", "training", "evaluation", "report"} <= set(plan.counts)
    assert not re.search(r"results/own/\S*(zero_shot|gallery|nsfw_caps)", plan.text)


def test_curves_are_drawn_where_the_run_has_their_section_alone(finished: Any) -> None:
    plan = finished.plan("--forcerun", "tradeoff")
    assert set(plan.counts) == {"tradeoff", *AGGREGATES}
    assert plan.counts["tradeoff"] == 7
    without = finished.plan("--forceall", config=finished.variant("no-curves", {"tradeoff": None}))
    assert "tradeoff" not in without.counts
    budgets = finished.plan(config=finished.variant("budgets", {"tradeoff.budgets": [3, 9]}))
    assert set(budgets.counts) == AGGREGATES


def test_the_judge_reads_nothing_of_the_test_data(finished: Any) -> None:
    text = finished.snakemake("--dry-run", "tradeoff_validation", "--forceall")
    plan = Plan(text)
    assert plan.counts["validation_tradeoff"] == 7
    assert {"validation_sets", "validation_benchmark", "tradeoff_ranking"} <= set(plan.counts)
    assert {"test_sets", "evaluation", "benchmark", "tradeoff"}.isdisjoint(plan.counts)
    read = [line for line in text.splitlines() if line.startswith("    input: ")]
    assert len(read) > 10
    assert not [line for line in read if re.search(r"data/test\.parquet|/test_sets/|/benchmark/nsfw", line)]
