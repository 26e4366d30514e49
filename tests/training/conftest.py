"""Everything that a training run reads, for both kinds of tiny models."""

from __future__ import annotations

import multiprocessing
import runpy
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saferclip import io
from saferclip.config import LossWeights, MiningSettings, TargetsStep, TrainingSettings
from saferclip.mining import embedding, nearest, targets
from saferclip.provenance import file_digest
from saferclip.training.inputs import Stored
from saferclip.training.losses import TERMS

from .results import numbers, same_weights

TRAIN, VALIDATION = 13, 6
CHILD = Path(__file__).parent / "child.py"
# Its children are processes like any other, but need not import torch again, which takes five seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["saferclip.cli", "saferclip.training.train", "saferclip.training.selection"])
TARGETS = {
    "tiny_clip_folder": r"(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
    "tiny_resnet_clip_folder": r"visual\.layer\d\.\d\.conv\d|transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
}


@dataclass(frozen=True)
class Material:
    """Input files of training runs, and settings that fit them."""

    target_modules: str
    base_model: Path
    train: Path
    validation: Path
    embeddings: Path
    neighbours: Path

    def files(self) -> dict[str, Path]:
        names = ("base_model", "train", "validation", "embeddings", "neighbours")
        return {name: getattr(self, name) for name in names}

    def store_pixels(self) -> None:
        """Write the files of pixels that training looks for."""
        settings = MiningSettings(block_size=8, batch_size=8, pixels="file")
        embedding.embed(settings, self.base_model, self.train, self.validation, self.embeddings.parent)

    def settings(self, dropout: float = 0.0, **changes: Any) -> TrainingSettings:
        """Settings of a short SaFeR-CLIP run; ``changes`` replace some of them, by name."""
        lora = {"rank": 2, "alpha": 4.0, "dropout": dropout, "target_modules": self.target_modules}
        optimisation = {
            "epochs": 3,
            "batch_size": 4,
            "accumulation": 1,
            "max_gradient_norm": 1.0,
            "precision": "bf16",
            "logit_scale": "base-model",
            "lora": lora,
        }
        method = {
            "targets": "nearest",
            "cross_modal": "relative",
            "curriculum": "progressive",
            "learning_rate": 1e-2,
            "weights": LossWeights(**dict.fromkeys(TERMS, 1.0)),
            "margin": None,
            "labels": None,
            "neighbourhood": None,
            "causal": None,
            "tuner": None,
        }
        for name, value in changes.items():
            section = optimisation if name in optimisation else method
            assert name in section, name
            section[name] = value
        return TrainingSettings.model_validate({"optimisation": optimisation, "method": method})


def make_material(kind: str, base_model: Path, tables: Callable[..., Path], folder: Path) -> Material:
    settings = MiningSettings(block_size=8, batch_size=8)
    train, validation = tables(TRAIN, "train", 1), tables(VALIDATION, "validation", 2)
    embedding.embed(settings, base_model, train, validation, folder)
    nearest.mine(settings, train, folder / embedding.FILE, folder)
    return Material(
        TARGETS[kind], base_model, train, validation, folder / embedding.FILE, folder / "neighbours.parquet"
    )


@pytest.fixture(params=list(TARGETS))
def material(request: pytest.FixtureRequest, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Material:
    """Once for each kind of model."""
    kind = request.param
    return make_material(kind, request.getfixturevalue(kind), tiny_quadruples, tmp_path / "material")


@pytest.fixture
def vit_material(tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Material:
    """For what does not depend on the kind of model: the faster one alone."""
    return make_material("tiny_clip_folder", tiny_clip_folder, tiny_quadruples, tmp_path / "material")


@pytest.fixture
def with_targets(tmp_path: Path) -> Callable[[Material, dict[str, Any]], Material]:
    """A function (material, rule) -> the same with targets mined by that rule."""

    def mine(material: Material, rule: dict[str, Any]) -> Material:
        settings = TargetsStep.model_validate({"block_size": 8, "targets": rule})
        folder = tmp_path / "targets" / settings.targets.name
        targets.mine(settings, material.train, material.embeddings, folder)
        return replace(material, neighbours=folder / targets.FILE)

    return mine


@pytest.fixture
def stored() -> Callable[[Material], Stored]:
    """A function (material) -> the file of the training split's pixels, written."""

    def store(material: Material) -> Stored:
        material.store_pixels()
        return Stored(material.embeddings.with_name(embedding.pixels_file("train")), file_digest(material.train))

    return store


def withhold(path: Path, safe: list[int], unsafe: list[int]) -> None:
    """Take the images of some rows out of a table."""
    rows = io.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        row["safe_image"] = None if number in safe else row["safe_image"]["bytes"]
        row["unsafe_image"] = None if number in unsafe else row["unsafe_image"]["bytes"]
    io.write_table(path, rows)


@pytest.fixture
def incomplete(vit_material: Material) -> Callable[..., Material]:
    """A function (safe gaps, unsafe gaps) -> material whose training and validation rows lack these images."""

    def make(safe: list[int], unsafe: list[int]) -> Material:
        withhold(vit_material.train, safe, unsafe)
        withhold(
            vit_material.validation,
            [row for row in safe if row < VALIDATION],
            [row for row in unsafe if row < VALIDATION],
        )
        settings = MiningSettings(block_size=8, batch_size=8)
        folder = vit_material.embeddings.parent
        embedding.embed(settings, vit_material.base_model, vit_material.train, vit_material.validation, folder)
        nearest.mine(settings, vit_material.train, folder / embedding.FILE, folder)
        return vit_material

    return make


@dataclass
class Command:
    """A ``saferclip`` command in a process of its own."""

    process: Any
    log: Path

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self.process.join(120)
        assert self.process.exitcode is not None, f"still running:\n{self.text}"
        return int(self.process.exitcode)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Command]:
    """A function (arguments, environment, accident=arguments of it, ...) -> the command, started."""
    count = 0

    def begin(arguments: list[str], environment: dict[str, str] | None = None, **accidents: list[Any]) -> Command:
        nonlocal count
        count += 1
        log = tmp_path / f"command-{count}.log"
        job = {"arguments": arguments, "environment": environment or {}, "log": str(log), "accidents": accidents}
        process = FORKS.Process(target=runpy.run_path, args=(str(CHILD), {"job": job}, "child"))
        process.start()
        return Command(process, log)

    return begin


def training_options(material: Material, output: Path, seed: int = 0, **changes: Any) -> list[str]:
    """A training as a command line; its state is beside its output."""
    options = {"settings": material.settings(**changes).model_dump_json(), "seed": seed, **material.files()}
    options |= {"output": output, "state": output.with_name(f"{output.name}.state"), "threads": 1}
    return ["training", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


@pytest.fixture
def training(tmp_path: Path, start: Callable[..., Command]) -> Callable[..., Command]:
    """A function (material, name, changes=..., accidents) -> a training into that folder, started."""

    def begin(material: Material, name: str, changes: dict[str, Any] | None = None, **accidents: Any) -> Command:
        return start(training_options(material, tmp_path / name, **changes or {}), **accidents)

    return begin


@pytest.fixture
def group(tmp_path: Path, start: Callable[..., Command]) -> Callable[..., list[Command]]:
    """A function (count, material, name, changes=..., accidents of each) -> one training in so many processes."""

    def begin(
        count: int,
        material: Material,
        name: str,
        changes: dict[str, Any] | None = None,
        accidents: dict[int, dict[str, list[Any]]] | None = None,
    ) -> list[Command]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        arguments = training_options(material, tmp_path / name, **changes or {})
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            start(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **(accidents or {}).get(rank, {}))
            for rank in range(count)
        ]

    return begin


@pytest.fixture
def same_run() -> Callable[[Path, Path], bool]:
    """Whether two runs' results are the same, weights and numbers, to the last bit."""

    def compare(one: Path, other: Path) -> bool:
        epochs = [pd.read_csv(folder / "epochs.csv") for folder in (one, other)]
        return same_weights(one, other) and numbers(one).equals(numbers(other)) and epochs[0].equals(epochs[1])

    return compare
