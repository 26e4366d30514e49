"""Conventions that every rule keeps, read from Snakemake's own parse of the rules."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = {"all", "downloads", "exports", "figures_and_tables", "tradeoff_validation"}  # these only name files

# What Snakemake understood of each rule.
RULES = """[
    {
        "name": rule.name,
        "log": list(map(str, rule.log)),
        "benchmark": str(rule.benchmark or ""),
        "resources": sorted(rule.resources),
        "docstring": rule.docstring or "",
        "shell": rule.shellcmd or "",
        "output": list(map(str, rule.output)),
        "norun": rule.norun,
    }
    for rule in workflow.rules
]"""


@pytest.fixture(scope="module", params=["mini", "tiny"])
def rules(request: pytest.FixtureRequest, finished: Any) -> dict[str, dict[str, Any]]:
    found = finished.parsed(RULES, request.param)
    return {rule["name"]: rule for rule in found if rule["name"] not in TARGETS}


def test_every_rule_says_what_it_needs_and_where_it_logs(rules: dict[str, dict[str, Any]]) -> None:
    assert len(rules) >= 12
    for name, rule in rules.items():
        assert rule["log"], f"{name}: no log"
        assert rule["benchmark"], f"{name}: no benchmark"
        assert {"mem_mb", "runtime"} <= set(rule["resources"]), f"{name}: memory or runtime not stated"
        assert rule["docstring"], f"{name}: no docstring"
        assert re.search(r"\{log(:q)?\}", rule["shell"]), f"{name}: the log is not written"


def test_every_rule_states_its_threads() -> None:
    """In the text: Snakemake fills in 1 where a rule says nothing."""
    text = "\n".join(file.read_text() for file in sorted((ROOT / "workflow/rules").glob("*.smk")))
    blocks = re.split(r"^ *rule (\w+):$", text, flags=re.MULTILINE)[1:]
    stated = {name: re.search(r"^ *threads: \d+$", body, re.MULTILINE) for name, body in batched_pairs(blocks)}
    assert len(stated) >= 12
    assert {name for name, found in stated.items() if not found} == TARGETS - {"all"}


def batched_pairs(items: list[str]) -> list[tuple[str, str]]:
    return list(zip(items[::2], items[1::2], strict=True))


def test_rule_command_log_and_folder_share_a_name(rules: dict[str, dict[str, Any]]) -> None:
    called = {}
    for name, rule in rules.items():
        command = re.match(r"saferclip ([a-z-]+)", rule["shell"])
        if command:
            called[name] = command[1].replace("-", "_")
    trials = {"learning_rate_training", "edit_trial"}
    others = {name for name, command in called.items() if name != command}
    assert others == trials | {"validation_benchmark", "validation_tradeoff"}
    assert set(rules) - set(called) == {"report", "learning_rates"}
    choices = {"learning_rate_selection": "learning_rates.csv", "edit_selection": "edits.csv"}
    for name in called.keys() - trials - {"figure", "table", "base_model_training"}:
        folder = choices.get(name, f"/{name}/")
        assert all(folder in file for file in rules[name]["output"]), name
        assert f"/{name}" in rules[name]["log"][0], name


def test_every_command_is_used_by_a_rule() -> None:
    """In the text, since no run has all rules."""
    from saferclip.cli import main

    text = "\n".join(file.read_text() for file in sorted((ROOT / "workflow/rules").glob("*.smk")))
    used = set(re.findall(r'^ *"saferclip ([a-z-]+) ', text, re.MULTILINE))
    assert set(main.commands) - used == {"settings", "validate", "pin", "verify"}


def test_the_package_knows_nothing_of_snakemake() -> None:
    files = list((ROOT / "src").rglob("*.py"))
    assert files
    for file in files:
        assert not re.search(r"^\s*(import|from) snakemake|snakemake\.", file.read_text(), re.MULTILINE), file


def test_the_main_path_fits_on_one_screen() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60


def test_lint_is_clean(finished: Any) -> None:
    assert "in a good condition" in finished.run(sys.executable, "-m", "snakemake", "--lint").stdout


def test_modules_are_those_a_step_imports(finished: Any) -> None:
    """The list of source files behind a step against what Python really loads."""
    summary = finished.plan("--forceall").text
    inputs = re.search(r"rule mining:\n    input: (.*)\n", summary)
    assert inputs
    listed = {file for file in inputs[1].split(", ") if file.endswith(".py")}
    script = (
        "import sys, saferclip.mining.nearest;"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('saferclip.')), sep='\\n')"
    )
    loaded = {
        str(Path(line).relative_to(finished.folder))
        for line in finished.run(sys.executable, "-c", script).stdout.splitlines()
    }
    assert {file for file in loaded if not file.startswith("src/saferclip/config/")} <= listed
    assert "src/saferclip/figures/registry.py" not in listed


def test_the_cluster_profile_gives_training_a_gpu(finished: Any) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    text = finished.snakemake("--dry-run", "--forceall", "--workflow-profile", "workflow/profiles/slurm")
    block = text.partition("\nrule training:")[2].partition("\nrule ")[0]
    assert re.search(r"resources: .*gpu=1", block)
    assert "threads: 2" in block  # 8 asked for, 2 cores given


def test_the_documentation_names_every_rule(rules: dict[str, dict[str, Any]]) -> None:
    text = (ROOT / "docs/workflow.md").read_text()
    for name in rules.keys() - {"learning_rate_training", "learning_rates", "edit_trial"}:
        assert f"`{name}`" in text or f" {name}`" in text, name
