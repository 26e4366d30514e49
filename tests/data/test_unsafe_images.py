"""ViSU's unsafe images made again: which are kept, and that interrupted work is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from saferclip import diffusion, io, safety
from saferclip.data import unsafe_images, visu
from saferclip.data.unsafe_images import MADE, MINOR, NONE_FLAGGED

SEEDS = (1234, 1999, 8185)


class Verdict(NamedTuple):
    unsafe: bool
    scores: dict[str, float]


def number(caption: str, seed: int) -> int:
    """What decides the fakes' image and verdict: nothing but caption and seed."""
    return int.from_bytes(sha256(f"{caption}/{seed}".encode()).digest()[:2])


class FakePainter:
    """Paints one colour, which caption and seed decide."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        self.batches.append(list(zip(prompts, seeds, strict=True)))
        colours = (number(prompt, seed) for prompt, seed in self.batches[-1])
        return [Image.new("RGB", (16, 16), (value >> 8, value & 255, 0)) for value in colours]


class FakeJudge:
    """Flags two reds in five."""

    def judge(self, images: Sequence[Image.Image]) -> list[Verdict]:
        reds = [image.getpixel((0, 0))[0] for image in images]  # type: ignore[index]
        return [Verdict(red % 5 < 2, {"nudenet": red / 255, "q16": 0.0}) for red in reds]


def flagged(caption: str, seed: int) -> bool:
    return (number(caption, seed) >> 8) % 5 < 2


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakePainter:
    painter = FakePainter()
    monkeypatch.setattr(diffusion, "load", lambda *_: painter)
    monkeypatch.setattr(safety, "load", lambda *_: FakeJudge())
    return painter


def rows_of(folder: Path, shards: int = 2) -> list[dict[str, Any]]:
    return [row for shard in range(shards) for row in io.read_table(folder / f"{shard}.parquet").to_pylist()]


def make(small_visu: Any, folder: Path, shards: int = 2, **changes: Any) -> list[dict[str, Any]]:
    settings = small_visu.unsafe_settings(shards=shards, **changes)
    for shard in range(shards):
        unsafe_images.make(settings, shard, small_visu.downloads, folder, folder.parent / "state" / str(shard))
    return rows_of(folder, shards)


def captions(small_visu: Any) -> dict[str, str]:
    return {f"{split}-{n}": row["nsfw"] for split, rows in small_visu.records.items() for n, row in enumerate(rows)}


def test_the_first_flagged_candidate_is_kept(small_visu: Any, tmp_path: Path, fakes: FakePainter) -> None:
    found = make(small_visu, tmp_path / "out")
    expected = captions(small_visu)
    assert [row["id"] for row in found] == list(expected)
    reasons = set()
    for row in found:
        caption = expected[row["id"]]
        tried = [seed for place, seed in enumerate(SEEDS) if not any(flagged(caption, s) for s in SEEDS[:place])]
        assert row["candidates"] == len(tried)
        assert [score["seed"] for score in json.loads(row["scores"])] == tried
        if flagged(caption, tried[-1]):
            assert row["reason"] == MADE and row["seed"] == tried[-1]
            image = io.decode_image(row["image"])
            assert abs(image.getpixel((0, 0))[0] - (number(caption, tried[-1]) >> 8)) < 8  # type: ignore[operator,index]
        else:
            assert row["reason"] == NONE_FLAGGED and row["image"] is None and row["seed"] == -1
        reasons.add((row["reason"], row["candidates"]))
    assert len(reasons) >= 3, "the captions are too alike to tell"
    assert max(len(batch) for batch in fakes.batches) == 3
    painted = [pair for batch in fakes.batches for pair in batch]
    assert len(painted) == len(set(painted)) == sum(row["candidates"] for row in found)
    summaries = [io.read_json(tmp_path / "out" / f"{shard}.json") for shard in range(2)]
    for reason in (MADE, NONE_FLAGGED, MINOR):
        counts = sum(summary["outcomes"][reason] for summary in summaries)
        assert counts == sum(row["reason"] == reason for row in found)
    assert sum(summary["candidates"] for summary in summaries) == len(painted)
    assert not any((tmp_path / "state").glob("*")), "the state of a run that ended is removed"


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 1), (1, 50), (5, 2), (14, 4)])
def test_shards_and_batches_do_not_change_results(
    small_visu: Any, tmp_path: Path, fakes: FakePainter, shards: int, batch_size: int
) -> None:
    assert fakes.batches == []
    one = make(small_visu, tmp_path / "one")
    diffusion_section = {**small_visu.unsafe_settings().diffusion.model_dump(), "batch_size": batch_size}
    assert make(small_visu, tmp_path / "other", shards, diffusion=diffusion_section) == one


def test_captions_that_could_mean_a_minor_are_never_painted(
    small_visu: Any, tmp_path: Path, fakes: FakePainter
) -> None:
    """Whichever of the two captions says so, or the kind of harm."""
    train = small_visu.records["train"]
    train[0]["nsfw"] = "A boy beside a pistol."
    train[1]["safe"] = "A 12 year old and her mother at a table."
    train[2]["nsfw"] = "Some t-e-e-n-s with a syringe."
    train[3]["tag"] = "child abuse"
    small_visu.write_text()
    found = {row["id"]: row for row in make(small_visu, tmp_path / "out")}
    for name in ("train-0", "train-1", "train-2", "train-3"):
        assert found[name]["reason"] == MINOR and found[name]["image"] is None and found[name]["candidates"] == 0
    assert {train[row]["nsfw"] for row in range(4)}.isdisjoint(p for batch in fakes.batches for p, _ in batch)
    assert io.read_json(tmp_path / "out" / "0.json")["outcomes"][MINOR] == 4


def test_without_anything_to_paint_no_model_is_loaded(
    small_visu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in small_visu.records.values():
        for row in rows:
            row["nsfw"] = "A child with a skull."
    small_visu.write_text()
    monkeypatch.setattr(diffusion, "load", lambda *_: pytest.fail("loaded"))
    assert {row["reason"] for row in make(small_visu, tmp_path / "out")} == {MINOR}


def test_seeds_are_the_records_own_those_of_the_settings_or_derived(small_visu: Any) -> None:
    record = unsafe_images.Record("train-0", "train", "weapons", "A cup.", "A skull.", 7, (5, 6, 7, 8))
    settings = small_visu.unsafe_settings()
    assert unsafe_images.prompt_of(record, settings).seeds == (5, 6, 7)
    record = record._replace(seeds=())
    assert unsafe_images.prompt_of(record, settings).seeds == SEEDS
    derived = small_visu.unsafe_settings(seeds=None)
    seeds = unsafe_images.prompt_of(record, derived).seeds
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**32 for seed in seeds)
    assert unsafe_images.prompt_of(record, derived).seeds == seeds
    assert unsafe_images.prompt_of(record._replace(id="train-1"), derived).seeds != seeds


def test_more_shards_than_captions_are_refused(small_visu: Any, tmp_path: Path) -> None:
    for shard in (0, 15):
        with pytest.raises(io.DataError, match=f"shard {shard} of 15 has no captions, of 14; lower shards"):
            unsafe_images.make(
                small_visu.unsafe_settings(shards=15), shard, small_visu.downloads, tmp_path / "o", tmp_path / "s"
            )


@pytest.mark.usefixtures("fakes")
def test_made_images_are_joined_with_the_data(small_visu: Any, tmp_path: Path, tables: Any) -> None:
    made = {row["id"]: row["image"] for row in make(small_visu, tmp_path / "made")}
    shards = [tmp_path / "made" / f"{shard}.parquet" for shard in range(2)]
    visu.write(small_visu.settings(), tmp_path / "data", small_visu.downloads, shards)
    found = {row["id"]: row["unsafe_image"] for rows in tables(tmp_path / "data").values() for row in rows}
    assert found == made and any(made.values()) and not all(made.values())


# Interruptions ----------------------------------------------------------------------------------

# One shard of all captions by the fakes, slowly enough to be killed in the middle.
SCRIPT = dedent(
    """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_unsafe_images as fakes
    from saferclip import diffusion, safety
    from saferclip.config import UnsafeImages
    from saferclip.data import unsafe_images

    class Slow(fakes.FakePainter):
        def paint(self, prompts, seeds):
            time.sleep(0.15)
            return super().paint(prompts, seeds)

    diffusion.load = lambda *_: Slow()
    safety.load = lambda *_: fakes.FakeJudge()
    settings = UnsafeImages.model_validate_json(sys.argv[2])
    folder = Path(sys.argv[3])
    unsafe_images.make(settings, 0, {"visu-text": Path(sys.argv[4])}, folder / "out", folder / "state")
    """
)


def start(small_visu: Any, folder: Path) -> subprocess.Popen[bytes]:
    settings = small_visu.unsafe_settings(shards=1).model_copy(
        update={"diffusion": small_visu.unsafe_settings().diffusion.model_copy(update={"batch_size": 1})}
    )
    arguments = (str(Path(__file__).parent), settings.model_dump_json(), str(folder), str(small_visu.text))
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], start_new_session=True)


def test_a_killed_shard_goes_on_and_ends_as_an_unbroken_one(small_visu: Any, tmp_path: Path) -> None:
    assert start(small_visu, tmp_path / "unbroken").wait(120) == 0
    process = start(small_visu, tmp_path / "killed")
    journal = tmp_path / "killed" / "state" / unsafe_images.FINISHED
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = journal.read_bytes().count(b"\n") - 1
    assert 4 <= finished < 14 and not (tmp_path / "killed" / "out").exists()
    with journal.open("ab") as file:
        file.write(b'{"id": "train-6", "rea')  # what a kill within a line leaves
    assert start(small_visu, tmp_path / "killed").wait(120) == 0
    one, other = (tmp_path / name / "out" for name in ("unbroken", "killed"))
    assert (one / "0.parquet").read_bytes() == (other / "0.parquet").read_bytes()
    summaries = [io.read_json(folder / "0.json") for folder in (one, other)]
    for summary in summaries:
        summary.pop("provenance")  # the commit may change while tests run
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "killed" / "state").exists()


class Killed(BaseException):
    """What a signal would raise."""


def interrupt(painter: FakePainter, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paint = painter.paint

    def some(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if len(painter.batches) == after:
            raise Killed
        return paint(prompts, seeds)

    monkeypatch.setattr(painter, "paint", some)


def test_what_is_finished_is_not_painted_again(
    small_visu: Any, tmp_path: Path, fakes: FakePainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(fakes, 4, patch)
        make(small_visu, tmp_path / "out", shards=1)
    state = tmp_path / "state" / "0" / unsafe_images.FINISHED
    done = {json.loads(line)["id"] for line in state.read_text().splitlines()[1:]}
    assert done
    fakes.batches.clear()
    # Fewer at once, as after running out of memory: the work goes on all the same.
    section = {**small_visu.unsafe_settings().diffusion.model_dump(), "batch_size": 1}
    found = make(small_visu, tmp_path / "out", shards=1, diffusion=section)
    painted = {prompt for batch in fakes.batches for prompt, _ in batch}
    assert painted.isdisjoint(captions(small_visu)[name] for name in done)
    assert found == make(small_visu, tmp_path / "other", shards=1)


@pytest.mark.parametrize("change", ["settings", "captions", "version"])
def test_state_of_other_work_is_ignored(
    small_visu: Any, tmp_path: Path, fakes: FakePainter, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(fakes, 4, patch)
        make(small_visu, tmp_path / "out", shards=1)
    fakes.batches.clear()
    changes: dict[str, Any] = {}
    if change == "settings":
        changes["diffusion"] = {**small_visu.unsafe_settings().diffusion.model_dump(), "steps": 3}
    elif change == "captions":
        small_visu.records["test"][0]["nsfw"] = "A quite different skull."
        small_visu.write_text()
    else:
        Path(f"{small_visu.downloads['painter']}.json").write_text('{"revision": "another"}')
    make(small_visu, tmp_path / "out", shards=1, **changes)
    painted = {prompt for batch in fakes.batches for prompt, _ in batch}
    assert painted == set(captions(small_visu).values())


def test_an_image_that_was_lost_is_painted_again(
    small_visu: Any, tmp_path: Path, fakes: FakePainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(fakes, 4, patch)
        make(small_visu, tmp_path / "out", shards=1)
    for image in (tmp_path / "state" / "0").glob("*.jpg"):
        image.unlink()
    found = make(small_visu, tmp_path / "out", shards=1)
    assert found == make(small_visu, tmp_path / "other", shards=1)


@pytest.mark.usefixtures("fakes")
def test_ids_are_not_taken_for_paths(small_visu: Any, tmp_path: Path) -> None:
    for row, name in enumerate(("../../escaped", "/etc/x", "a/b")):
        small_visu.records["train"][row]["incremental_id"] = name
    for row in small_visu.records["train"][3:]:
        row["incremental_id"] = str(row["incremental_id"])
    small_visu.write_text()
    before = set(tmp_path.rglob("*"))
    make(small_visu, tmp_path / "deep" / "out", shards=1)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == {tmp_path / "deep" / "out" / "0.parquet", tmp_path / "deep" / "out" / "0.json"}
    assert np.unique([row["id"] for row in rows_of(tmp_path / "deep" / "out", 1)]).size == 14
