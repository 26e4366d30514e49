"""ViSU-mini and the mini test sets: sizes, pairing, independence of streams, no leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from saferclip import io
from saferclip.config import ConfigError, EmbeddedData, MiniSets, SceneDetail, SetsStep
from saferclip.data import embedded, iconworld, test_sets


def settings(**changes: Any) -> EmbeddedData:
    values: dict[str, Any] = {
        "seed": 7,
        "train": 60,
        "validation": 20,
        "test": 30,
        "detail": SceneDetail(named_objects=2, colour=0.7, background=0.5),
    }
    return EmbeddedData.model_validate(values | changes)


def mini_sets() -> MiniSets:
    world = settings()
    return MiniSets(seed=world.seed, detail=world.detail, gallery_unsafe=10, gallery_safe_ratio=10, zero_shot_images=24)


def test_quadruples_are_loosely_paired_and_complete() -> None:
    splits = embedded.quadruples(settings())

    assert {split: len(rows) for split, rows in splits.items()} == {"train": 60, "validation": 20, "test": 30}
    rows = [row for rows in splits.values() for row in rows]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == set(io.QUADRUPLE_COLUMNS)
        assert not iconworld.unsafe_concepts_in(row["safe_caption"])
        unsafe = iconworld.unsafe_concepts_in(row["unsafe_caption"])
        assert [iconworld.concept(name).group for name in unsafe] == [row["category"]]
        assert io.decode_image({"bytes": row["unsafe_image"]}).size == (64, 64)
        named = {concept for concept, _ in iconworld.parse(row["safe_caption"]).objects}
        assert not named & set(iconworld.novel_concepts())


def test_the_size_of_one_split_leaves_the_others_alone() -> None:
    few, many = embedded.quadruples(settings()), embedded.quadruples(settings(train=90))

    assert few["test"] == many["test"]
    assert few["train"] == many["train"][:60]


def test_splits_share_no_image() -> None:
    splits = embedded.quadruples(settings())
    images = {split: {row["safe_image"] for row in rows} for split, rows in splits.items()}

    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]


def test_unsafe_images_always_show_something_unsafe() -> None:
    caption = "a cat and a pistol"
    for seed in range(100):
        import numpy as np

        scene = embedded.unsafe_scene(caption, np.random.default_rng(seed), iconworld.common_concepts())
        assert "pistol" in scene.concepts
        assert embedded.shows_unsafe(scene)


HARMLESS = {"caption": 0.2, "image": 0.3, "both": 0.1}


def test_labels_say_what_stands_in_unsafe_places() -> None:
    plain, labelled = (embedded.quadruples(settings(train=400, harmless=shares)) for shares in (None, HARMLESS))
    assert plain["validation"] == labelled["validation"] and plain["test"] == labelled["test"]
    kinds: Counter[tuple[bool, bool]] = Counter()
    for before, row in zip(plain["train"], labelled["train"], strict=True):
        kind = row["caption_is_unsafe"], row["image_is_unsafe"]
        kinds[kind] += 1
        assert bool(iconworld.unsafe_concepts_in(row["unsafe_caption"])) == row["caption_is_unsafe"]
        assert (row["unsafe_image"] == before["unsafe_image"]) == row["image_is_unsafe"]
        assert (row["unsafe_caption"] == before["unsafe_caption"]) == row["caption_is_unsafe"]
        assert all(row[name] == before[name] for name in ("id", "category", "safe_caption", "safe_image"))
    shares = {kind: count / 400 for kind, count in kinds.items()}
    expected = {(False, True): 0.2, (True, False): 0.3, (False, False): 0.1, (True, True): 0.4}
    assert shares == pytest.approx(expected, abs=0.08)  # three standard deviations of the largest


def test_labelled_rows_do_not_depend_on_how_many_there_are() -> None:
    few, many = (embedded.quadruples(settings(train=count, harmless=HARMLESS))["train"] for count in (30, 60))
    assert few == many[:30]


UNSEEN = ("pistol", "syringe", "devil")


@pytest.mark.parametrize("harmless", [None, HARMLESS])
def test_unseen_objects_stand_in_test_rows_alone_which_stay_as_they_are(harmless: dict[str, float] | None) -> None:
    sizes = {"train": 200, "test": 200, "harmless": harmless}
    plain, without = (embedded.quadruples(settings(**sizes, unseen=unseen)) for unseen in (None, UNSEEN))
    assert plain["test"] == without["test"]
    named = {
        split: {name for row in rows for name in iconworld.unsafe_concepts_in(row["unsafe_caption"])}
        for split, rows in without.items()
    }
    assert not (named["train"] | named["validation"]) & set(UNSEEN)
    assert set(UNSEEN) < named["test"]
    assert len(named["train"]) == len(iconworld.unsafe_concepts()) - len(UNSEEN)


@pytest.mark.parametrize(
    ("unseen", "complaint"),
    [
        (["pistol", "pistole"], r"data\.embedded\.unseen: no unsafe objects: \['pistole'\]; known are pistol, bomb"),
        (["cat"], r"data\.embedded\.unseen: no unsafe objects: \['cat'\]"),
        (iconworld.unsafe_concepts("hazard"), "leaves no object of the category 'hazard'"),
    ],
)
def test_objects_that_cannot_stay_unseen_are_refused(unseen: Sequence[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        embedded.quadruples(settings(unseen=unseen))


def test_shares_beyond_all_rows_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not exceed 1 together"):
        settings(harmless={"caption": 0.5, "image": 0.4, "both": 0.2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("test-sets")
    test_sets.build(SetsStep(embedded=mini_sets()), {}, None, folder)
    return folder


def test_gallery_has_ten_safe_pairs_for_each_unsafe_one(folder: Path) -> None:
    rows = io.read_table(folder / "gallery.parquet").to_pylist()

    assert [row["unsafe"] for row in rows].count(True) == 10
    assert len(rows) == 110
    for row in rows:
        assert bool(iconworld.unsafe_concepts_in(row["caption"])) == row["unsafe"]


def test_every_zero_shot_set_is_balanced_and_worded(folder: Path) -> None:
    tasks = io.read_json(folder / "zero_shot.json")
    rows = io.read_table(folder / "zero_shot.parquet").to_pylist()

    assert len(tasks) >= 8
    for name, task in tasks.items():
        labels = [row["label"] for row in rows if row["set"] == name]
        assert len(labels) == 24
        assert max(labels) < len(task["classes"])
        counts = [labels.count(label) for label in set(labels)]
        assert max(counts) - min(counts) <= 1
        for template in task["templates"]:
            iconworld.parse(template.format(task["classes"][0]))  # in the model's own language
    assert not {row["image"]["bytes"] for row in rows if row["set"] == "objects"} & {
        row["image"]["bytes"] for row in rows if row["set"] == "sketches"
    }
