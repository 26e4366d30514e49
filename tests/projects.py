"""Copies of the project to run the workflow in, with the project's own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "workflow", "profiles", "config", "src", "environment.yml", "dvc.yaml", ".dvc", ".dvcignore")

# Snakemake's own parse of the rules, as `workflow`; in a process of its own, because it is one workflow per process.
PARSED = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings
with SnakemakeApi(OutputSettings(stdout=False)) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=2),
        config_settings=ConfigSettings(configfiles=[Path(sys.argv[1])]),
        snakefile=Path("Snakefile"),
    )._workflow
"""


@dataclass(frozen=True)
class Project:
    """A folder with the project's files, and commands run in it."""

    folder: Path

    @classmethod
    def copy(cls, folder: Path) -> Project:
        """The working tree without what it has made."""
        junk = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp")
        for name in PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, symlinks=(ROOT / name).is_symlink(), ignore=junk)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, folder / name)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for this folder's code and this Python's tools."""
        tools = Path(sys.executable).parent
        return os.environ | {
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),  # nobody's own profiles or caches
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command with this folder's code and this Python's tools; standard error is in stdout."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
        return done

    def snakemake(self, *arguments: str, config: str = "mini", check: bool = True) -> str:
        """Run Snakemake on ``config/<config>.yaml`` and return what it says."""
        command = (sys.executable, "-m", "snakemake", "--cores", "2", *arguments)
        return self.run(*command, "--configfile", f"config/{config}.yaml", check=check).stdout

    def parsed(self, expression: str, config: str) -> Any:
        """What a Python expression about ``workflow``, Snakemake's parse of a configuration's rules, says; as JSON."""
        script = f'{PARSED}    print("PARSED" + json.dumps({expression}, default=str))'
        text = self.run(sys.executable, "-c", script, f"config/{config}.yaml").stdout
        return json.loads(text.rpartition("PARSED")[2])

    def plan(self, *arguments: str, config: str = "mini") -> Plan:
        """What Snakemake would do."""
        return Plan(self.snakemake("--dry-run", *arguments, config=config))

    def variant(self, name: str, changes: dict[str, Any], config: str = "mini") -> str:
        """Write ``config/<name>.yaml``: a configuration with some keys (dotted) changed; return the name."""
        values = yaml.safe_load((self.folder / f"config/{config}.yaml").read_text())
        for key, value in changes.items():
            *parents, last = key.split(".")
            section = values
            for parent in parents:
                section = section[parent]
            section[last] = value
        (self.folder / f"config/{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return name

    def smaller(self, name: str, changes: dict[str, Any] | None = None) -> str:
        """Write ``config/<name>.yaml``, the tiny run with one tuned method and one seed; return the name."""
        methods = yaml.safe_load((self.folder / "config/tiny.yaml").read_text())["methods"]
        kept = {method: methods[method] for method in ("clip", "safer-clip")}
        return self.variant(name, {"name": name, "seeds": [0], "methods": kept} | (changes or {}), "tiny")

    def pretend(self, config: str = "mini") -> None:
        """Make a finished run whose outputs hold nothing but their own names."""
        summary = self.snakemake("--summary", config=config)
        for line in summary.splitlines():
            if line.startswith("results/"):
                file = self.folder / line.split("\t")[0]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(str(file))
        self.snakemake("--touch", "--forceall", config=config)

    def version(self, config: str) -> None:
        """Make the folder a Git repository in which DVC keeps a finished run of another configuration."""
        stages = (self.folder / "dvc.yaml").read_text()
        stages = stages.replace("iconworld-clip", f"{config}-clip").replace("mini", config)
        commands = re.sub(r"(cmd: snakemake.*)", rf"\1 --configfile config/{config}.yaml", stages)
        (self.folder / "dvc.yaml").write_text(commands)
        (self.folder / ".gitignore").write_text("/results/*\n.snakemake/\n/.cache/\n__pycache__/\n")
        self.run("git", "init", "--quiet")
        self.run("dvc", "commit", "--force")


class Plan:
    """The jobs of a dry run."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.jobs: list[tuple[str, dict[str, str]]] = []
        for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", text)[1:]:
            name = block.split(":", 1)[0].split()[1]
            wildcards = re.search(r"\n    wildcards: (.*)\n", block)
            pairs = dict(pair.split("=", 1) for pair in wildcards[1].split(", ")) if wildcards else {}
            self.jobs.append((name, pairs))

    @property
    def counts(self) -> Counter[str]:
        """How many jobs of each rule there are."""
        return Counter(name for name, _ in self.jobs)

    def of(self, rule: str) -> list[dict[str, str]]:
        """The wildcards of a rule's jobs."""
        return [wildcards for name, wildcards in self.jobs if name == rule]
