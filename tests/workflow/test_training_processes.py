"""The rule training with two GPUs, which are two processes where there is no GPU: stopped once, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saferclip.config import MiningSettings, load
from saferclip.mining import embedding, nearest

RUN = Path("results/several")
EPOCHS = 40  # of one step each, so that there is a middle to stop in


@pytest.fixture
def prepared(project_copy: Any, tiny_resnet_clip_folder: Path, tiny_quadruples: Callable[..., Path]) -> Any:
    """A project in which everything that the rule reads is there, in its smallest form."""
    project = project_copy("several")
    project.variant("several", {"name": "several", "optimisation.epochs": EPOCHS}, "tiny")
    run = project.folder / RUN
    shutil.copytree(tiny_resnet_clip_folder, run / "base_model")
    (run / "data").mkdir()
    for split, count in {"train": 13, "validation": 6}.items():
        shutil.copy(tiny_quadruples(count, split), run / f"data/{split}.parquet")
    settings = MiningSettings.model_validate_json(load(project.folder / "config/several.yaml").settings_of("mining"))
    train, validation = run / "data/train.parquet", run / "data/validation.parquet"
    embedding.embed(settings, run / "base_model", train, validation, run / "embedding")
    nearest.mine(settings, train, run / "embedding" / embedding.FILE, run / "mining")
    return project


def test_torchrun_starts_two_processes_that_stop_and_go_on_as_one_would(prepared: Any) -> None:
    results = f"{RUN}/training/safer-clip/seed-0"
    folder, log = prepared.folder / results, prepared.folder / "stopped.log"
    settings = load(prepared.folder / "config/several.yaml").settings_of("training", "safer-clip")
    command = (
        *(sys.executable, "-m", "saferclip", "training", "--settings", settings, "--seed", "0"),
        *("--base-model", f"{RUN}/base_model", "--train", f"{RUN}/data/train.parquet"),
        *("--validation", f"{RUN}/data/validation.parquet", "--embeddings", f"{RUN}/embedding/frozen.safetensors"),
        *("--neighbours", f"{RUN}/mining/neighbours.parquet", "--output", results),
        *("--state", f"{RUN}/state/training/safer-clip/seed-0", "--processes", "2", "--threads", "2"),
    )
    with log.open("w") as file:
        environment = os.environ | {"PYTHONPATH": str(prepared.folder / "src")}
        stopped = subprocess.Popen(command, cwd=prepared.folder, env=environment, stderr=file)
        while "epoch 3:" not in log.read_text():
            assert stopped.poll() is None, log.read_text()
            time.sleep(0.05)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(120) == 128 + signal.SIGTERM, log.read_text()
    said = log.read_text()
    assert said.count("start again to go on from there") == 1 and "Traceback" not in said
    assert not folder.exists()

    # As a profile would give the rule its GPUs; all other inputs are there.
    options = ("--allowed-rules", "training", "--set-resources", "training:gpu=2", "--set-threads", "training=2")
    prepared.snakemake(f"{results}/record.json", *options, config="several")
    gone_on = (prepared.folder / RUN / "logs/training/safer-clip/seed-0.log").read_text()
    assert "going on from" in gone_on and "epoch 3:" not in gone_on and f"epoch {EPOCHS}:" in gone_on
    record = json.loads((folder / "record.json").read_text())
    assert (record["processes"], record["threads"]) == (2, 1)
    assert pd.read_csv(folder / "steps.csv").step.tolist() == list(range(1, EPOCHS + 1))
