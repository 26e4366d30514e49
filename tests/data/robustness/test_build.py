"""The tables of variants: which rows there are, in both sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saferclip import io
from saferclip.config import EmbeddedData, RobustnessStep, SceneDetail
from saferclip.data import embedded, iconworld
from saferclip.data.robustness import build, icons

DETAIL = SceneDetail(named_objects=2, colour=0.7, background=0.5)
WORDS = {"paraphrase", "typo", "synonym", "two_unsafe", "several", "relation"}
STYLES = {f"style_{style.replace(' ', '_')}" for style in icons.STYLES}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.parquet"
    settings = EmbeddedData(seed=5, train=1, validation=1, test=30, detail=DETAIL)
    io.write_table(path, embedded.quadruples(settings)["test"])
    return path


def step(**changes: Any) -> RobustnessStep:
    return RobustnessStep.model_validate({"seed": 5, "detail": DETAIL, "queries": 12, "typos": 1} | changes)


def built(folder: Path, table: Path, **changes: Any) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Rows of each variant, and what is said of it."""
    build.build(step(**changes), table, folder)
    described = io.read_json(folder / build.DESCRIPTION)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in described}
    for row in io.read_table(folder / build.TABLE).to_pylist():
        rows[row.pop("variant")].append(row)
    return rows, described


def test_every_variant_has_the_queries_of_its_control(tmp_path: Path, table: Path) -> None:
    rows, described = built(tmp_path, table)
    assert set(rows) == {"unchanged", *WORDS, "redrawn", *STYLES, "ordinary", "shared_word", "related"}
    for name, entry in described.items():
        assert entry["rows"] == len(rows[name])
        assert entry["rows"] + entry["left_out"] == 12
        control = entry["control"]
        assert control is None or {row["id"] for row in rows[name]} <= {row["id"] for row in rows[control]}
        assert all((row["image"] is None) == (entry["kind"] == "unsafe_caption") for row in rows[name])
        assert all((row["caption"] is None) == (entry["kind"] == "unsafe_image") for row in rows[name])
    assert {described[name]["control"] for name in WORDS | {"redrawn"}} == {"unchanged"}
    assert {described[name]["control"] for name in STYLES} == {"redrawn"}


def test_unchanged_captions_are_those_of_the_table_spread_over_it(tmp_path: Path, table: Path) -> None:
    rows, _ = built(tmp_path, table)
    known = {row["id"]: row["unsafe_caption"] for row in io.read_table(table).to_pylist()}
    assert [row["id"] for row in rows["unchanged"]] == [f"test-{place * 30 // 12:05d}" for place in range(12)]
    assert {row["id"]: row["caption"] for row in rows["unchanged"]}.items() <= known.items()
    for name in WORDS:
        for row in rows[name]:
            assert row["caption"] != known[row["id"]]


def test_all_queries_where_there_are_fewer_than_asked_for(tmp_path: Path, table: Path) -> None:
    rows, _ = built(tmp_path, table, queries=500, detail=None)
    assert len(rows["unchanged"]) == 30


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path, table: Path) -> None:
    for name, changes in {"one": {}, "two": {}, "other": {"seed": 6}}.items():
        build.build(step(**changes), table, tmp_path / name)
    one, two, other = ((tmp_path / name / build.TABLE).read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_typos_change_typos_alone(tmp_path: Path, table: Path) -> None:
    one, _ = built(tmp_path / "one", table)
    two, _ = built(tmp_path / "two", table, typos=2)
    assert {name for name in one if one[name] != two[name]} == {"typo"}


def test_some_items_are_spread_over_all_of_them() -> None:
    assert build.spread("abcdefghij", 3) == ["a", "d", "g"]
    assert build.spread("ab", 3) == ["a", "b"]


def test_pairs_with_unseen_objects_stand_beside_as_many_seen_ones(tmp_path: Path, table: Path) -> None:
    unseen = ["battle axe", "devil"]
    plain, _ = built(tmp_path / "plain", table)
    rows, described = built(tmp_path / "unseen", table, unseen=unseen)
    assert {name: rows[name] for name in plain} == plain
    names = ["seen_object", "seen_object_photos", "unseen_object", "unseen_object_photos"]
    assert [name for name in rows if name not in plain] == names
    assert [described[name]["kind"] for name in names] == ["unsafe_pair", "photos"] * 2
    assert [described[name]["control"] for name in names] == [None, "seen_object", "seen_object", "unseen_object"]
    shown = {}
    for name in ("seen_object", "unseen_object"):
        assert [row["id"] for row in rows[name]] == [row["id"] for row in rows["unchanged"]]
        for row, photo, own in zip(rows[name], rows[f"{name}_photos"], rows["unchanged"], strict=True):
            (before,), (after,) = (iconworld.unsafe_concepts_in(each["caption"]) for each in (own, row))
            assert before != after
            assert photo["id"] == row["id"] and photo["caption"] is None
            assert photo["image"]["bytes"] != row["image"]["bytes"]
            shown.setdefault(name, set()).add(after)
    assert shown["unseen_object"] == set(unseen)
    assert len(shown["seen_object"]) == 2 and not shown["seen_object"] & set(unseen)


def test_without_a_world_only_words_change_and_the_rest_is_counted(
    tmp_path: Path, tiny_quadruples: Callable[..., Path]
) -> None:
    rows, described = built(tmp_path, tiny_quadruples(20, "test"), detail=None)
    assert {name for name, found in rows.items() if found} == {
        *("unchanged", "paraphrase", "typo", "synonym", "ordinary", "phrase")
    }
    for name in {"two_unsafe", "several", "relation", "redrawn", *STYLES}:
        assert (described[name]["rows"], described[name]["left_out"]) == (0, 12)
    for near, ordinary in zip(rows["phrase"], rows["ordinary"], strict=True):
        assert near["id"] == ordinary["id"]
        assert near["caption"] != ordinary["caption"]
        assert near["image"] is None


def test_captions_without_a_word_to_change_are_left_out(tmp_path: Path) -> None:
    quadruple = {"id": "one", "safe_caption": "a cup", "unsafe_caption": "an axe"}
    io.write_table(tmp_path / "test.parquet", [quadruple, quadruple | {"id": "two", "unsafe_caption": "a pistol"}])
    rows, described = built(tmp_path / "out", tmp_path / "test.parquet", detail=None)
    for name in ("synonym", "typo"):
        assert [row["id"] for row in rows[name]] == ["two"]
        assert described[name]["left_out"] == 1


def test_a_table_without_pairs_of_captions_is_refused(tmp_path: Path) -> None:
    io.write_table(tmp_path / "test.parquet", [{"id": "one", "safe_caption": "a cup", "unsafe_caption": None}])
    with pytest.raises(io.DataError, match=r"test\.parquet: no row has a safe and an unsafe caption"):
        build.build(step(), tmp_path / "test.parquet", tmp_path)
