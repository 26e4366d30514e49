"""Probes of the embedded world: images show the captions, foils differ in what the probe asks and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.config import MiniSets, SceneDetail, SetsStep
from saferclip.data import probes, test_sets
from saferclip.data.iconworld import Mention, concept, parse, visible_fraction
from saferclip.data.iconworld.grammar import parse_sentence

COUNT = 150


def sets(**changes: Any) -> MiniSets:
    sizes = {"gallery_unsafe": 2, "gallery_safe_ratio": 2, "zero_shot_images": 3, "probe_images": 3}
    detail = SceneDetail(named_objects=2, colour=0.7, background=0.5)
    return MiniSets.model_validate({"seed": 7, "detail": detail, **sizes, **changes})


def statements(name: str) -> list[tuple[probes.Statement, Any]]:
    rng = np.random.default_rng(1)
    return [probes.seen(rng, probes.PROBES[name].statement) for _ in range(COUNT)]


def said(statement: probes.Statement) -> tuple[Mention, Mention]:
    return parse(statement.caption.text()), parse(statement.foil.text())


@pytest.mark.parametrize("name", probes.PROBES)
def test_the_image_shows_what_the_caption_says(name: str) -> None:
    for statement, scene in statements(name):
        caption, foil = said(statement)
        shown = Counter((item.concept, item.colour) for item in scene.objects)
        kinds = Counter(scene.concepts)
        for (thing, colour), count in zip(caption.objects, caption.counts, strict=True):
            assert (kinds[thing] if colour is None else shown[thing, colour]) == count
        assert sum(caption.counts) == len(scene.objects)
        # The foil says something that is not there.
        wrong = [
            (kinds[thing] if colour is None else shown[thing, colour]) != count
            for (thing, colour), count in zip(foil.objects, foil.counts, strict=True)
        ]
        assert any(wrong)
        assert min(visible_fraction(scene)) >= 0.5
        assert not any(concept(thing).unsafe for thing in kinds)


@pytest.mark.parametrize("name", probes.PROBES)
def test_caption_and_foil_are_worded_alike(name: str) -> None:
    for statement, _ in statements(name):
        caption, foil = statement.caption, statement.foil
        assert (caption.lead, caption.connectors) == (foil.lead, foil.connectors)
        assert caption.background is foil.background is None
        assert [item.concept for item in caption.objects] == [item.concept for item in foil.objects]
        assert parse_sentence(caption.text()) == caption
        assert caption.text() != foil.text()


def test_swapped_colours_are_the_same_two() -> None:
    for statement, _ in statements("colour_binding"):
        caption, foil = said(statement)
        colours = [colour for _, colour in caption.objects]
        assert [colour for _, colour in foil.objects] == colours[::-1]
        assert len(set(colours)) == 2 and None not in colours
        assert caption.counts == foil.counts == (1, 1)


def test_swapped_numbers_are_the_same_two() -> None:
    drawn = set()
    for statement, _ in statements("count_binding"):
        caption, foil = said(statement)
        assert foil.counts == caption.counts[::-1]
        assert 1 in caption.counts and max(caption.counts) > 1
        assert {colour for mention in (caption, foil) for _, colour in mention.objects} == {None}
        drawn.add(caption.counts)
    assert drawn == {(1, 2), (2, 1), (1, 3), (3, 1)}


def test_counts_differ_in_the_number_alone() -> None:
    drawn = set()
    for statement, _ in statements("counting"):
        caption, foil = said(statement)
        assert caption.objects == foil.objects and len(caption.objects) == 1
        drawn.add((*caption.counts, *foil.counts))
    assert drawn == {(2, 3), (2, 4), (3, 2), (3, 4), (4, 2), (4, 3)}


def test_the_control_replaces_one_colour_by_one_that_is_not_there() -> None:
    for statement, scene in statements("colours"):
        caption, foil = said(statement)
        assert caption.objects[1] == foil.objects[1]
        assert foil.objects[0][1] not in {item.colour for item in scene.objects}
    assert [name for name, probe in probes.PROBES.items() if probe.control] == ["colours"]


def test_probes_are_written_beside_the_other_sets(tmp_path: Path) -> None:
    test_sets.build(SetsStep(embedded=sets()), {}, None, tmp_path)
    rows = io.read_table(tmp_path / "probes.parquet").to_pylist()
    assert Counter(row["probe"] for row in rows) == dict.fromkeys(probes.PROBES, 3)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {io.decode_image(row["image"]).size for row in rows} == {(64, 64)}
    assert set(io.read_json(tmp_path / "probes.json")) == set(probes.PROBES)


def test_more_images_leave_the_first_ones_alone() -> None:
    few, many = probes.rows(sets()), probes.rows(sets(probe_images=5))
    first = {name: [row for row in many if row["probe"] == name][:3] for name in probes.PROBES}
    assert few == [row for part in first.values() for row in part]
    assert probes.rows(sets(seed=8)) != few


def test_without_a_size_there_are_none(tmp_path: Path) -> None:
    test_sets.build(SetsStep(embedded=sets(probe_images=None)), {}, None, tmp_path)
    assert (tmp_path / "zero_shot.parquet").exists()
    assert not (tmp_path / "probes.parquet").exists()
