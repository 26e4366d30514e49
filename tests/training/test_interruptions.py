"""A training that is told to end saves and leaves; started again, it ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saferclip import signals
from saferclip.training import progress, train
from saferclip.training.tuner import Tuner

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train into a folder, with dropout, and return it."""

    def start(material: Any, name: str) -> Path:
        output, state = tmp_path / name, tmp_path / f"{name}.state"
        train.train(material.settings(dropout=0.3), 0, output=output, state=state, **material.files())
        return output

    return start


def signal_after(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Get a signal while the step's numbers are looked at."""
    take, taken = Tuner.steps, 0

    def steps(self: Tuner, *arguments: Any) -> Iterator[dict[str, float]]:
        nonlocal taken
        for numbers in take(self, *arguments):
            taken += 1
            if taken == step:
                os.kill(os.getpid(), number)
            yield numbers

    monkeypatch.setattr(Tuner, "steps", steps)


def signal_in_validation(epoch: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Get a signal in the first batch of an epoch's validation."""
    embed_all, count = Tuner.embed_all, 0

    def embed(self: Tuner, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == epoch:
            os.kill(os.getpid(), number)
        return embed_all(self, *arguments)

    monkeypatch.setattr(Tuner, "embed_all", embed)


# 2, 3 and 4 steps in the three epochs.
@pytest.mark.parametrize(
    ("accident", "moment", "number", "place"),
    [
        (signal_after, 1, signal.SIGTERM, "step 1 (epoch 1)"),
        (signal_after, 4, signal.SIGINT, "step 4 (epoch 2)"),
        (signal_after, 5, signal.SIGUSR1, "step 5 (epoch 2)"),
        (signal_after, 9, signal.SIGTERM, "step 9 (epoch 3)"),
        (signal_in_validation, 2, signal.SIGUSR1, "step 5 (epoch 2)"),
    ],
)
def test_a_run_that_a_signal_ended_goes_on_from_that_very_step(
    vit_material: Any,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_run: Any,
    accident: Any,
    moment: int,
    number: signal.Signals,
    place: str,
) -> None:
    unbroken = run(vit_material, "unbroken")
    with monkeypatch.context() as patch, pytest.raises(signals.Ended) as caught:
        accident(moment, number, patch)
        run(vit_material, "broken")
    folder = tmp_path / "broken.state"
    assert caught.value.code == 128 + number
    assert caught.value.message == (
        f"ended by {number.name} after {place}; the state is in {folder}: start again to go on from there"
    )
    assert not (tmp_path / "broken").exists()
    taken: list[int] = []
    with monkeypatch.context() as patch:
        add = progress.Progress.add_step
        patch.setattr(progress.Progress, "add_step", lambda self, step: taken.append(step["step"]) or add(self, step))
        resumed = run(vit_material, "broken")
    assert taken == list(range(int(place.split()[1]) + 1, 10)), "only the steps that were missing"
    assert same_run(unbroken, resumed)
    assert not folder.exists()


def test_a_killed_run_loses_what_came_after_the_last_saving(
    vit_material: Any, run: Run, monkeypatch: pytest.MonkeyPatch, same_run: Any
) -> None:
    """Saving after every step stands in for saving every few minutes."""
    unbroken = run(vit_material, "unbroken")
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0)

    def die(_number: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(signals.Request, "note", lambda _self, number: die(number))
        signal_after(4, signal.SIGTERM, patch)
        run(vit_material, "broken")
    taken: list[int] = []
    add = progress.Progress.add_step
    monkeypatch.setattr(progress.Progress, "add_step", lambda self, step: taken.append(step["step"]) or add(self, step))
    resumed = run(vit_material, "broken")
    assert taken == [4, 5, 6, 7, 8, 9], "3 had been saved"
    assert same_run(unbroken, resumed)


def test_the_command_says_where_it_stopped(vit_material: Any, training: Any, tmp_path: Path, same_run: Any) -> None:
    """As a scheduler does: the signal goes to the whole group.  Pixels are read by threads meanwhile."""
    unbroken = training(vit_material, "unbroken")
    assert unbroken.wait() == 0, unbroken.text
    vit_material.store_pixels()
    broken = training(vit_material, "broken", signal_after_step=[4, signal.SIGTERM, True])
    assert broken.wait() == 128 + signal.SIGTERM, broken.text
    assert broken.text.endswith(
        f"ended by SIGTERM after step 4 (epoch 2); the state is in {tmp_path / 'broken.state'}: start again to go on "
        "from there\n"
    )
    assert "Traceback" not in broken.text
    resumed = training(vit_material, "broken")
    assert resumed.wait() == 0, resumed.text
    assert f"going on from {tmp_path / 'broken.state'}" in resumed.text
    assert same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_other_commands_clean_up_too(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    arguments = ["learning-rate-selection", f"--run=safer-clip/1e-3={tmp_path}", f"--output={folder / 'rates.csv'}"]
    command = start(arguments, hang_while_writing=[])
    while "half written" not in command.text:
        assert command.process.is_alive(), command.text
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    assert command.text == "half written\nended by SIGTERM\n"
    assert list(folder.iterdir()) == []
