"""One training in several processes: the numbers of one process, whatever falls to whom."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from saferclip import io, models
from saferclip.config import ConfigError
from saferclip.training import losses, processes, train

Group = Callable[..., list[Any]]
# Two processes add up in another order than one: 1e-6 apart here.  Adam divides a gradient by its own size, so that
# one which is nothing but rounding moves a weight as far as any: hence a share of the whole change, not of each weight.
LOSS, CHANGE = 1e-5, 1e-3


def alone(material: Any, output: Path, **changes: Any) -> Path:
    """The same training in one process, this one."""
    state = output.with_name(f"{output.name}.state")
    train.train(material.settings(**changes), 0, output=output, state=state, **material.files())
    return output


def adapter(folder: Path) -> torch.Tensor:
    tensors = io.read_tensors(folder / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def assert_same_training(one: Path, other: Path, fresh: Path) -> None:
    """The same steps with the same losses, and adapters that differ by a small part of what training did to them."""
    first, second = (pd.read_csv(folder / "steps.csv") for folder in (one, other))
    assert list(first) == list(second)
    pd.testing.assert_frame_equal(first[["step", "epoch"]], second[["step", "epoch"]])
    measured = [name for name in ("loss", *losses.TERMS, "gradient_norm") if name in first]
    pd.testing.assert_frame_equal(first[measured], second[measured], rtol=LOSS, atol=LOSS)
    start, trained, trained_too = adapter(fresh), adapter(one), adapter(other)
    assert (trained - start).norm() > 0.01 * start.norm(), "training changed nothing"
    assert (trained - trained_too).norm() < CHANGE * (trained - start).norm()


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Path]:
    """Adapters after one step so small that they are as they were drawn."""

    def make(material: Any) -> Path:
        return alone(material, tmp_path / "fresh", epochs=1, batch_size=100, learning_rate=1e-30)

    return make


def test_two_processes_train_as_one_does(material: Any, group: Group, tmp_path: Path, fresh: Any) -> None:
    """SaFeR-CLIP, both kinds of models: 13 rows in batches of 5, each in micro-batches of 2, 2 and 1."""
    changes = {"precision": "fp32", "batch_size": 5, "accumulation": 3, "max_gradient_norm": 0.03}
    commands = group(2, material, "two", changes)
    one = alone(material, tmp_path / "one", **changes)
    assert [command.wait() for command in commands] == [0, 0], commands[1].text
    two = tmp_path / "two"
    assert_same_training(one, two, fresh(material))
    assert io.read_json(two / "record.json")["processes"] == 2
    assert not (tmp_path / "two.state").exists()
    assert "epoch 3" in commands[0].text and "epoch" not in commands[1].text, "one of them speaks"
    clipped = pd.read_csv(one / "steps.csv").gradient_norm > 0.03
    assert clipped.any(), "clipping was to be part of this"


def test_contrastive_terms_have_the_negatives_of_all_processes(
    incomplete: Any, group: Group, tmp_path: Path, fresh: Any
) -> None:
    """Safe-CLIP, where images are missing, and with 3 processes for a last batch of one row."""
    material = incomplete([0, 4, 11], [1, 4, 5, 6, 12])
    changes = {"precision": "fp32", "cross_modal": "infonce", "targets": "paired", "curriculum": "none"}
    changes |= {"batch_size": 6, "accumulation": 1, "epochs": 2}
    commands = group(3, material, "three", changes)
    one = alone(material, tmp_path / "one", **changes)
    assert [command.wait() for command in commands] == [0, 0, 0], commands[0].text
    assert_same_training(one, tmp_path / "three", fresh(material))
    records = [io.read_json(tmp_path / name / "record.json") for name in ("one", "three")]
    assert records[0]["rows"] == records[1]["rows"] and records[0]["quadruples"] == records[1]["quadruples"]
    assert records[0]["validation"] == pytest.approx(records[1]["validation"], rel=1e-4)


def test_a_signal_to_one_process_stops_all_at_one_step_and_a_restart_equals_an_unbroken_run(
    vit_material: Any, group: Group, tmp_path: Path, same_run: Any
) -> None:
    """With dropout, whose random numbers differ from process to process."""
    changes = {"dropout": 0.3}
    unbroken = group(2, vit_material, "unbroken", changes)
    accidents = {1: {"signal_after_step": [4, signal.SIGTERM]}}
    broken = group(2, vit_material, "broken", changes, accidents)
    statuses = [command.wait() for command in broken]
    assert statuses == [128 + signal.SIGTERM] * 2, broken[0].text
    said = "".join(command.text for command in broken)
    # Mostly once; the other process says it too if the first, which it asks, has ended before it could answer.
    assert said.count("ended by SIGTERM after step 4 (epoch 2)") in (1, 2) and "Traceback" not in said, said
    resumed = group(2, vit_material, "broken", changes)
    assert [command.wait() for command in (*unbroken, *resumed)] == [0] * 4, resumed[0].text
    assert "going on from" in resumed[0].text and "epoch 1:" not in resumed[0].text
    assert same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes.check_devices(2)
    with pytest.raises(ConfigError, match="4 processes needs 4 GPUs, and 2 can be seen here; lower the resource gpu"):
        processes.check_devices(4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    processes.check_devices(4)  # on a CPU, processes share it


def test_one_process_shares_nothing() -> None:
    single = processes.Processes()
    rows = torch.arange(3)
    columns = [torch.rand(3, 2), torch.rand(3, 2)]
    assert single.share(rows) is rows and single.join(columns, 3) is columns
    assert single.highest(3, 0) == [3, 0] and single.from_first(lambda: 5) == 5 and single.ending() == 0
    assert models.default_device().type == "cuda" or len(single.random_states()[0]) == len(torch.get_rng_state())
