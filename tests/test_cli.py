"""The command line: complete, quick to answer, and plain about what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from saferclip import cli
from saferclip.config import ConfigError, MiningSettings
from saferclip.io import DataError

ROOT = Path(__file__).parents[1]
MINI = str(ROOT / "config/mini.yaml")
STEPS = (
    "download",
    "unsafe-images",
    "data",
    "test-sets",
    "robustness",
    "validation-sets",
    "base-model-training",
    "base-model",
    "published-model",
    "benchmark-images",
    "benchmark",
    "embedding",
    "mining",
    "targets",
    "training",
    "learning-rate-selection",
    "edit",
    "edit-selection",
    "evaluation",
    "tradeoff",
    "tradeoff-ranking",
    "export",
    "text-to-image",
    "image-to-text",
    "figure",
    "table",
)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_every_step_is_a_command_in_the_order_of_the_workflow() -> None:
    code, text, _ = run("--help")
    assert code == 0
    listed = re.findall(r"^  ([a-z-]+)  ", text.partition("Commands:")[2], re.MULTILINE)
    assert listed == [*STEPS, "settings", "validate", "pin", "verify"]


@pytest.mark.parametrize("step", STEPS)
def test_every_command_explains_its_options(step: str) -> None:
    code, text, _ = run(step, "--help")
    assert code == 0
    for option in cli.main.commands[step].params:
        assert option.opts[0] in text or option.name in text.lower()


def test_help_imports_nothing_heavy() -> None:
    """What makes `saferclip --help` quick; a time limit would fail on a busy machine."""
    script = (
        "import sys; from click.testing import CliRunner; from saferclip.cli import main;"
        "result = CliRunner().invoke(main, ['--help']); assert result.exit_code == 0;"
        "print(sorted({'torch', 'numpy', 'pydantic', 'pandas', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "saferclip", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: saferclip")


def test_settings_are_what_the_step_accepts() -> None:
    code, text, _ = run("settings", "mining", "--config", MINI)
    assert code == 0
    assert MiningSettings.model_validate(json.loads(text))


def test_settings_of_training_are_those_of_one_method() -> None:
    code, text, _ = run("settings", "training", "--method", "safer-clip", "--config", MINI)
    assert code == 0
    assert json.loads(text).keys() == {"method", "optimisation"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("settings", "training", "--config", MINI), "name a method"),
        (("settings", "training", "--method", "clip", "--config", MINI), "'clip' is not trained"),
        (("settings", "minning", "--config", MINI), "no step 'minning'"),
        (("validate", "--config", str(ROOT / "pyproject.toml")), "cannot be read"),
        (("mining", "--settings", "{", "--train", MINI, "--embeddings", MINI, "--output", "x"), "not JSON"),
        (
            ("mining", "--settings", '{"blok_size": 1}', "--train", MINI, "--embeddings", MINI, "--output", "x"),
            "did you mean 'block_size'?",
        ),
    ],
)
def test_mistakes_are_reported_without_a_traceback(arguments: tuple[str, ...], message: str) -> None:
    code, _, text = run(*arguments)
    assert code == 1
    assert text.startswith("error: ")
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize("error", [ConfigError("a"), DataError("b"), FileNotFoundError(2, "c", "d")])
def test_errors_that_a_user_can_mend_are_reported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(error, monkeypatch)
    code, _, text = run("validate", "--config", MINI)
    assert (code, text) == (1, f"error: {error}\n")


def test_running_out_of_memory_is_reported_with_what_to_do() -> None:
    """Really: a tensor of 2**45 numbers, as torch refuses it, and an array of them, as numpy does."""
    for library, allocate in {"torch": "torch.empty(2**45)", "numpy": "numpy.empty(2**45)"}.items():
        script = (
            f"import resource, {library}; from saferclip import cli, config;"
            "resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34));"
            f"config.load = lambda *_: {allocate};"
            f"cli.main(['validate', '--config', {MINI!r}])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: out of memory: ") and "mem_mb" in done.stderr
        assert "Traceback" not in done.stderr


def test_programming_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(cli.main, ["validate", "--config", MINI], catch_exceptions=False)


def test_a_missing_input_file_is_named() -> None:
    code, _, text = run("validate", "--config", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in text


def test_learning_rates_reach_the_selection_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saferclip.training import selection

    received: list[Any] = []
    monkeypatch.setattr(selection, "select", lambda *arguments: received.extend(arguments))
    output = tmp_path / "selection.csv"
    runs = ("--run", "a/0.001=x/epochs.csv", "--run", "a/3e-05=y/epochs.csv", "--run", "b/0.001=z.csv")
    assert run("learning-rate-selection", *runs, "--output", str(output))[0] == 0
    expected = {"a": {0.001: Path("x/epochs.csv"), 3e-05: Path("y/epochs.csv")}, "b": {0.001: Path("z.csv")}}
    assert received == [expected, output]


@pytest.mark.parametrize("value", ["a/0.001", "a/fast=x.csv", "=x.csv", "a/0.1="])
def test_a_malformed_run_is_refused(value: str) -> None:
    code, _, text = run("learning-rate-selection", "--run", value, "--output", "x.csv")
    assert code == 2
    assert "METHOD/RATE=CSV" in text or "name=path" in text


def _fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path) -> None:
        raise error

    monkeypatch.setattr("saferclip.config.load", load)
