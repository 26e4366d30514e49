"""What goes wrong in a training is named, costs nothing that was saved, and leaves nothing half written."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saferclip import io, signals
from saferclip.config import ConfigError
from saferclip.training import checkpoint, progress, train
from saferclip.training.tuner import Tuner


@pytest.fixture
def stopped(vit_material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a run that ended after step 4, and had saved after each."""
    output, state = tmp_path / "run", tmp_path / "run.state"
    with monkeypatch.context() as patch, pytest.raises(signals.Ended):
        patch.setattr(progress, "SAVE_SECONDS", 0)
        add = progress.Progress.add_step

        def add_step(self: progress.Progress, step: dict[str, float]) -> None:
            add(self, step)
            if len(self.steps) == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(progress.Progress, "add_step", add_step)
        train.train(vit_material.settings(), 0, output=output, state=state, **vit_material.files())
    return state


@pytest.fixture
def unbroken(vit_material: Any, tmp_path: Path) -> Path:
    """What the run is to end as."""
    train.train(vit_material.settings(), 0, output=tmp_path / "un", state=tmp_path / "un.state", **vit_material.files())
    return tmp_path / "un"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit of a weight, which torch itself does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    """By a whole file of another kind."""
    torch.save([1, 2, 3], path)


class Bomb:
    """Leaves a file behind where its pickle is executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("damage", [truncate, flip, empty, replace])
def test_of_a_damaged_state_the_one_before_is_taken(
    vit_material: Any, training: Any, stopped: Path, unbroken: Path, same_run: Any, damage: Callable[[Path], None]
) -> None:
    path = stopped / checkpoint.FILE
    damage(path)
    again = training(vit_material, "run")
    assert again.wait() == 0, again.text
    assert f"{path} cannot be read (it is not what was written: truncated, changed or not a state at all)" in again.text
    assert f"going on from {stopped / checkpoint.PREVIOUS}" in again.text
    assert same_run(unbroken, stopped.with_name("run"))


def test_where_all_states_are_damaged_a_run_starts_anew(
    vit_material: Any, training: Any, stopped: Path, unbroken: Path, same_run: Any
) -> None:
    for path in stopped.iterdir():
        truncate(path)
    again = training(vit_material, "run")
    assert again.wait() == 0, again.text
    assert again.text.count("cannot be read") == 2
    assert f"{stopped}: no state of this run that could be used; starting anew" in again.text
    assert same_run(unbroken, stopped.with_name("run"))


@pytest.mark.parametrize("signed", [False, True])
def test_a_state_that_would_execute_something_does_not(
    vit_material: Any, training: Any, stopped: Path, tmp_path: Path, signed: bool
) -> None:
    """Also where whoever made it knows how states are marked as whole."""
    marker = tmp_path / "executed"
    (stopped / checkpoint.PREVIOUS).unlink()
    torch.save({"digest": Bomb(marker)}, tmp_path / "bomb")
    content = (tmp_path / "bomb").read_bytes()
    torch.load(tmp_path / "bomb", weights_only=False)
    assert marker.exists(), "the bomb works"
    marker.unlink()
    signature = hashlib.sha256(content).digest() if signed else b""
    (stopped / checkpoint.FILE).write_bytes(signature + content)
    again = training(vit_material, "run")
    assert again.wait() == 0, again.text
    assert "cannot be read" in again.text and "starting anew" in again.text and "Traceback" not in again.text
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"other": 1}, {key: [] for key in checkpoint.KEYS} | {"digest": "x"}])
def test_a_whole_state_of_something_else_is_left_out(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "content")
    stored = (tmp_path / "content").read_bytes()
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / checkpoint.FILE).write_bytes(hashlib.sha256(stored).digest() + stored)
    parameter = torch.nn.Parameter(torch.zeros(1))
    found = checkpoint.Checkpoint(folder, "mine").restore({"a": parameter}, torch.optim.Adam([parameter]))
    assert found is None


def test_a_run_that_diverged_diverges_again_with_the_same_message(
    vit_material: Any, training: Any, tmp_path: Path
) -> None:
    """It goes on from the last good state, of the end of epoch 1: saved numbers are all finite."""
    rows = io.read_tensors(vit_material.embeddings)
    table = io.read_table(vit_material.neighbours).to_pylist()
    hard = next(row["unsafe_id"] for row in table if row["difficulty"] == 1)
    rows["train.unsafe_image"][int(hard[-5:])] = np.nan
    io.write_tensors(vit_material.embeddings, rows)
    said = []
    for _ in range(2):
        command = training(vit_material, "run")
        assert command.wait() == 1
        assert "Traceback" not in command.text
        said.append(command.text.splitlines()[-1])
    assert said[0] == said[1] and said[0].startswith("error: training diverged at step ") and "(epoch 2)" in said[0]
    assert "epoch 1:" not in command.text, "the second run went on from the first one's state"
    assert not (tmp_path / "run").exists()
    state = checkpoint._load(tmp_path / "run.state" / checkpoint.FILE)
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())


def test_a_picture_that_cannot_be_decoded_is_named_in_one_line(vit_material: Any, training: Any) -> None:
    rows = io.read_table(vit_material.train).to_pylist()
    for number, row in enumerate(rows):
        row["safe_image"], row["unsafe_image"] = (row[name]["bytes"] for name in ("safe_image", "unsafe_image"))
        if number == 7:
            row["unsafe_image"] = row["unsafe_image"][:100]
    io.write_table(vit_material.train, rows)
    command = training(vit_material, "run")
    assert command.wait() == 1
    assert f"error: {vit_material.train}: row 7, unsafe_image: the image cannot be decoded" in command.text
    assert "Traceback" not in command.text


def test_damaged_pixels_are_named_in_one_line_and_cost_nothing(
    vit_material: Any, training: Any, unbroken: Path, same_run: Any, tmp_path: Path
) -> None:
    """One byte of an image that only the last epoch uses: the run goes on from the one before."""
    vit_material.store_pixels()
    file = vit_material.embeddings.with_name("train_pixels.safetensors")
    table = io.read_table(vit_material.neighbours).to_pylist()
    hard = next(int(row["unsafe_id"][-5:]) for row in table if row["difficulty"] == 2)
    whole = file.read_bytes()
    size, images = 32 * 32 * 3, 13
    content = bytearray(whole)
    content[len(whole) - (images - hard) * size + size // 2] ^= 1
    file.write_bytes(content)
    command = training(vit_material, "run")
    assert command.wait() == 1
    said = f"error: {file}: image {hard} of unsafe_image is damaged; remove the file, and embed again"
    assert command.text.splitlines()[-1] == said
    assert "Traceback" not in command.text and "epoch 2:" in command.text
    file.write_bytes(whole)
    again = training(vit_material, "run")
    assert again.wait() == 0, again.text
    assert "going on from" in again.text and "epoch 2:" not in again.text
    assert same_run(unbroken, tmp_path / "run")


def test_a_state_for_which_there_is_no_room_leaves_the_one_before(
    vit_material: Any, training: Any, stopped: Path, unbroken: Path, same_run: Any
) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    full = training(vit_material, "run", limit_files=[len(before[checkpoint.FILE]) // 2])
    assert full.wait() == 1
    last = full.text.splitlines()[-1]
    assert last.startswith("error: [Errno 27] File too large") and str(stopped / checkpoint.FILE) in last
    assert "Traceback" not in full.text
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    again = training(vit_material, "run")
    assert again.wait() == 0, again.text
    assert same_run(unbroken, stopped.with_name("run"))


def test_a_gpu_that_is_too_small_is_named(vit_material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 80 GiB.")

    monkeypatch.setattr(Tuner, "_backward", run_out)
    with pytest.raises(
        ConfigError, match=r"^CUDA out of memory: train on more GPUs.* raise optimisation\.accumulation"
    ):
        train.train(vit_material.settings(), 0, output=tmp_path / "a", state=tmp_path / "b", **vit_material.files())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds a state, but no model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_results_for_which_there_is_no_room_cost_no_training(
    vit_material: Any, training: Any, small_disk: Path, unbroken: Path, same_run: Any
) -> None:
    full = training(vit_material, "disk/run")
    assert full.wait() == 1
    last = full.text.splitlines()[-1]
    assert "No space left on device" in last and str(small_disk / "run") in last and "make room" in last
    assert "Traceback" not in full.text
    assert {path.name for path in small_disk.iterdir()} == {"run.state"}
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    again = training(vit_material, "disk/run")
    assert again.wait() == 0, again.text
    assert "epoch" not in again.text.replace("epochs", ""), "nothing was trained again"
    assert same_run(unbroken, small_disk / "run")


def test_a_state_of_the_former_format_is_left_out_with_a_word(
    vit_material: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As versions before this wrote it: a plain file of torch."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / checkpoint.FILE).write_bytes(pickle.dumps({"digest": "x"}))
    train.train(vit_material.settings(epochs=1), 0, output=tmp_path / "run", state=folder, **vit_material.files())
    assert "cannot be read" in caplog.text and "starting anew" in caplog.text
