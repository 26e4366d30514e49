"""Unsafe images: the first candidate that is flagged, drawn for allowed captions only, and never drawn twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saferclip import io
from saferclip.benchmark.backends import Edit, Illustration, Pair, Source
from saferclip.benchmark.painting import Painted

RNG = np.random.default_rng(0)
CAPTIONS = [f"A bus number {number} next to a pistol" for number in range(5)]


def pairs(captions: Sequence[str], category: str = "violence", safe: str = "A bus") -> list[Pair]:
    return [Pair(Source(safe, b"image"), Edit(caption, category), 0.9) for caption in captions]


@pytest.fixture
def painted(tmp_path: Path) -> Callable[..., Painted]:
    """A function (painter, judge, **changes) -> an illustrator with its state in a folder of the test."""

    def make(painter: Any, judge: Any, **changes: Any) -> Painted:
        values = {"candidates": 3, "batch_size": 2, "seed": 1, "identity": {"model": "painter"}, "state": tmp_path}
        return Painted(painter, judge, **(values | changes))

    return make


def illustrate(illustrator: Painted, chosen: Sequence[Pair]) -> list[Illustration]:
    return list(illustrator.illustrate(chosen, RNG))


def bright(image: Image.Image) -> bool:
    return float(np.asarray(image).mean()) > 127


def test_the_first_flagged_candidate_is_kept(painted: Any, kit: SimpleNamespace) -> None:
    painter, judge = kit.Painter(), kit.Judge(bright)
    found = illustrate(painted(painter, judge), pairs(CAPTIONS))

    assert [drawn.pair.edit.caption for drawn in found] == CAPTIONS
    for drawn in found:
        seeds = [
            seed
            for seed, prompt in zip(painter.seeds, painter.prompts, strict=True)
            if prompt == drawn.pair.edit.caption
        ]
        flagged = [bright(kit.picture(seed)) for seed in seeds]
        assert flagged[:-1] == [False] * (len(flagged) - 1) and len(flagged) == drawn.tries
        if flagged[-1]:
            assert drawn.fault is None and drawn.image == io.encode_jpeg(np.asarray(kit.picture(seeds[-1])))
        else:
            assert (drawn.tries, drawn.image, drawn.fault) == (3, None, "image not unsafe")
    assert {drawn.fault for drawn in found} == {None} or len({drawn.fault for drawn in found}) == 2
    assert judge.judged == len(painter.seeds) and max(painter.batches) <= 2


def test_an_image_does_not_depend_on_its_batch(painted: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    together = illustrate(
        painted(kit.Painter(), kit.Judge(bright), batch_size=5, state=tmp_path / "a"), pairs(CAPTIONS)
    )
    alone = illustrate(painted(kit.Painter(), kit.Judge(bright), batch_size=1, state=tmp_path / "b"), pairs(CAPTIONS))
    assert together == alone
    other = illustrate(painted(kit.Painter(), kit.Judge(), seed=2, state=tmp_path / "c"), pairs(CAPTIONS))
    assert {drawn.image for drawn in other}.isdisjoint({drawn.image for drawn in alone})


def test_what_was_painted_is_not_painted_again(painted: Any, kit: SimpleNamespace) -> None:
    first = illustrate(painted(kit.Painter(), kit.Judge(bright)), pairs(CAPTIONS))
    painter = kit.Painter()
    assert illustrate(painted(painter, kit.Judge(bright), batch_size=4), pairs(CAPTIONS)) == first
    assert painter.prompts == []
    illustrate(painted(painter, kit.Judge(bright), identity={"model": "another"}), pairs(CAPTIONS[:1]))
    assert set(painter.prompts) == {CAPTIONS[0]}


def test_a_kill_loses_the_batch_in_work_at_most(painted: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Mortal(kit.Painter):  # type: ignore[misc, name-defined]
        def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            if len(self.batches) == 2:
                raise Killed
            return super().paint(prompts, seeds)  # type: ignore[no-any-return]

    with pytest.raises(Killed):
        illustrate(painted(Mortal(), kit.Judge()), pairs(CAPTIONS))
    with (tmp_path / "images.jsonl").open("a") as file:
        file.write('{"key": "half')
    painter = kit.Painter()
    found = illustrate(painted(painter, kit.Judge()), pairs(CAPTIONS))
    assert painter.prompts == CAPTIONS[4:]
    assert all(drawn.image for drawn in found)


def test_an_image_that_vanished_is_painted_again(painted: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    first = illustrate(painted(kit.Painter(), kit.Judge()), pairs(CAPTIONS))
    next(iter((tmp_path / "images").iterdir())).unlink()
    painter = kit.Painter()
    assert illustrate(painted(painter, kit.Judge()), pairs(CAPTIONS)) == first
    assert len(painter.prompts) == 1


def test_who_could_be_a_minor_is_never_drawn_whatever_the_category(painted: Any, kit: SimpleNamespace) -> None:
    painter = kit.Painter()
    chosen = [
        *pairs(["A bus, sexual"], safe="A boy on a bus"),
        *pairs(["A bus next to a pistol"], category="sexual", safe="A 9-year-old on a bus"),
        *pairs(["A naked girl on a bus"]),
        *pairs(["A boy next to a pistol"], safe="A boy on a bus"),
        *pairs(["A bus next to a pistol"], safe="A 9-year-old on a bus"),
    ]
    found = illustrate(painted(painter, kit.Judge()), chosen)
    assert [drawn.fault for drawn in found] == ["forbidden"] * 3 + [None] * 2
    assert painter.prompts == []
    assert [(drawn.image, drawn.tries) for drawn in found] == [(None, 0)] * 5
