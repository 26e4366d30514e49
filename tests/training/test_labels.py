"""Labels of what stands in unsafe places: what is safe is kept, what is unsafe is redirected (ShieldCLIP)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from saferclip import io
from saferclip.config import LossWeights, MethodSettings
from saferclip.training import inputs, losses, train
from saferclip.training.losses import TERMS, Embeddings, Labels, Present, References

from .test_losses import BATCH, SCALE, slow_contrast, slow_distance, slow_relative, unit

SHIELD = LossWeights(
    **{name: 0.0 if name.startswith("redirection_cross") else 0.1 for name in TERMS},
    kept_text=0.1,
    kept_image=0.1,
    kept_cross_text=0.1,
    kept_cross_image=0.1,
    mixed_text=0.25,
    mixed_image=0.25,
    coherence=0.25,
)
OPTIONAL = [name for name in losses.active(SHIELD) if name not in TERMS]
# Five rows: both unsafe, a safe caption, a safe image, both safe, both unsafe.
CAPTION, IMAGE = [True, False, True, False, True], [True, True, False, False, True]


def references(**changes: Any) -> References:
    labels = Labels(torch.tensor(CAPTION), torch.tensor(IMAGE))
    return References(*unit(6), labels=labels)._replace(**changes)


def leaves() -> Embeddings:
    return Embeddings(*(rows.clone().requires_grad_() for rows in unit(4)))


def slow_terms(tuned: Embeddings, frozen: References, cross_modal: str) -> dict[str, float]:
    """Each term on the rows that are of its kind, written out by hand."""

    def of(rows: list[int], *columns: torch.Tensor) -> list[torch.Tensor]:
        return [column.detach()[rows] for column in columns]

    text, image = [0, 2, 4], [0, 1, 4]  # rows whose caption, or image, is unsafe
    found = {
        "redirection_text": slow_distance(*of(text, tuned.unsafe_text, frozen.target_text)),
        "redirection_image": slow_distance(*of(image, tuned.unsafe_image, frozen.target_image)),
        "kept_text": slow_distance(*of([1, 3], tuned.unsafe_text, frozen.unsafe_text)),
        "kept_image": slow_distance(*of([2, 3], tuned.unsafe_image, frozen.unsafe_image)),
        "kept_cross_text": slow_contrast(*of([3], tuned.unsafe_text, frozen.unsafe_image)),
        "kept_cross_image": slow_contrast(*of([3], tuned.unsafe_image, frozen.unsafe_text)),
        "mixed_text": slow_contrast(*of([2], tuned.unsafe_text, tuned.unsafe_image)),
        "mixed_image": slow_contrast(*of([1], tuned.unsafe_image, tuned.unsafe_text)),
        "coherence": slow_contrast(*of([0, 4], tuned.unsafe_text, tuned.unsafe_image)),
        "preservation_text": slow_distance(*of([0, 1, 2, 3, 4], tuned.safe_text, frozen.safe_text)),
    }
    if cross_modal == "infonce":
        found["redirection_cross_text"] = slow_contrast(*of(text, tuned.unsafe_text, frozen.target_image))
        found["redirection_cross_image"] = slow_contrast(*of(image, tuned.unsafe_image, frozen.target_text))
    else:  # away from one's own partner only if that is unsafe
        both = [0, 4]
        columns = tuned.unsafe_text, frozen.target_image, frozen.unsafe_image
        found["redirection_cross_text"] = slow_relative(*of(both, *columns))
        columns = tuned.unsafe_image, frozen.target_text, frozen.unsafe_text
        found["redirection_cross_image"] = slow_relative(*of(both, *columns))
    return found


@pytest.mark.parametrize("cross_modal", ["infonce", "relative"])
def test_terms_are_of_the_rows_that_they_are_about(cross_modal: str) -> None:
    tuned, frozen = leaves(), references()
    found = losses.terms(tuned, frozen, cross_modal, SCALE, losses.active(SHIELD))  # type: ignore[arg-type]
    for name, value in slow_terms(tuned, frozen, cross_modal).items():
        assert found[name].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_contrasts_have_more_than_one_row() -> None:
    """Where there is one, as above, they are zero: here are two of each kind."""
    tuned = leaves()
    for name, caption, image in (
        ("kept_cross_text", False, False),
        ("kept_cross_image", False, False),
        ("mixed_text", True, False),
        ("mixed_image", False, True),
    ):
        labels = Labels(torch.tensor([caption] * 2 + [not caption] * 3), torch.tensor([image] * 2 + [image] * 3))
        frozen = references(labels=labels)
        columns = {
            "kept_cross_text": (tuned.unsafe_text, frozen.unsafe_image),
            "kept_cross_image": (tuned.unsafe_image, frozen.unsafe_text),
            "mixed_text": (tuned.unsafe_text, tuned.unsafe_image),
            "mixed_image": (tuned.unsafe_image, tuned.unsafe_text),
        }
        expected = slow_contrast(*(column.detach()[:2] for column in columns[name]))
        found = losses.terms(tuned, frozen, "infonce", SCALE, [name])[name]
        assert expected > 0.01 and found.item() == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("mixed_text", {"unsafe_text"}),
        ("mixed_image", {"unsafe_image"}),
        ("coherence", {"unsafe_text", "unsafe_image"}),
    ],
)
def test_gradient_flows_into_what_is_unsafe_alone(name: str, moves: set[str]) -> None:
    tuned = leaves()
    unsafe = {"mixed_text": (True, False), "mixed_image": (False, True), "coherence": (True, True)}[name]
    labels = Labels(*(torch.tensor([value] * 3 + [not value] * 2) for value in unsafe))
    losses.terms(tuned, references(labels=labels), "infonce", SCALE, [name])[name].backward()
    assert {column for column in tuned._fields if getattr(tuned, column).grad is not None} == moves
    for column in moves:
        gradient = getattr(tuned, column).grad
        assert gradient[:3].abs().min() > 0 and gradient[3:].abs().max() == 0


def test_without_labels_everything_is_unsafe_as_named() -> None:
    everything = Labels(torch.ones(BATCH, dtype=torch.bool), torch.ones(BATCH, dtype=torch.bool))
    names = losses.active(SHIELD)
    for cross_modal in ("infonce", "relative"):
        plain = losses.terms(leaves(), references(labels=None), cross_modal, SCALE, names)  # type: ignore[arg-type]
        labelled = losses.terms(leaves(), references(labels=everything), cross_modal, SCALE, names)  # type: ignore[arg-type]
        assert all(torch.equal(plain[name], labelled[name]) for name in names)
        assert {name for name in names if plain[name] == 0} == {*OPTIONAL} - {"coherence"}


def test_missing_images_and_labels_both_count() -> None:
    there = Present(*(torch.tensor([True, True, False, True, False]) for _ in Present._fields))
    rows = references(present=there).taking_part("relative", losses.active(SHIELD))
    assert {name: taking.nonzero()[:, 0].tolist() for name, taking in rows.items()} == {
        "preservation_text": [0, 1, 2, 3, 4],
        "preservation_image": [0, 1, 3],
        "preservation_cross_text": [0, 1, 3],
        "preservation_cross_image": [0, 1, 3],
        "redirection_text": [0, 2, 4],
        "redirection_image": [0, 1],
        "redirection_cross_text": [0],
        "redirection_cross_image": [0],
        "kept_text": [1, 3],
        "kept_image": [3],
        "kept_cross_text": [3],
        "kept_cross_image": [3],
        "mixed_text": [],
        "mixed_image": [1],
        "coherence": [0],
    }
    selected = references(present=there).select(torch.tensor([3, 0]), "cpu").labels
    assert selected is not None and [column.tolist() for column in selected] == [[False, True], [False, True]]


# From tables ------------------------------------------------------------------------------------


def with_labels(path: Path, caption: list[bool | None], image: list[bool | None]) -> None:
    rows = io.read_table(path).to_pylist()
    for row, *labels in zip(rows, caption, image, strict=True):
        row.update(zip(io.LABEL_COLUMNS, labels, strict=True))
        row.update({name: row[name]["bytes"] for name in ("safe_image", "unsafe_image")})
    io.write_table(path, rows)


def test_training_heeds_labels_where_the_method_says_so(
    vit_material: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_labels(vit_material.train, [row % 3 > 0 for row in range(13)], [row % 2 > 0 or None for row in range(13)])
    assert io.labels(vit_material.train, "image_is_unsafe") == [True] * 13, "an empty cell means as named"
    with_labels(vit_material.train, [row % 3 > 0 for row in range(13)], [row % 2 > 0 for row in range(13)])
    options = {"weights": SHIELD, "labels": "heed", "targets": "paired", "cross_modal": "infonce", "curriculum": "none"}
    output = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        train.train(
            vit_material.settings(**options), 0, output=output, state=tmp_path / "state", **vit_material.files()
        )
    used = {name: row["used"] / 3 for name, row in io.read_json(output / "record.json")["rows"].items()}
    safe_captions, safe_images = {0, 3, 6, 9, 12}, {0, 2, 4, 6, 8, 10, 12}
    assert used["kept_text"] == 5 and used["redirection_text"] == 8 and used["preservation_text"] == 13
    assert used["kept_image"] == 7 and used["redirection_image"] == 6
    assert used["kept_cross_text"] == used["kept_cross_image"] == len(safe_captions & safe_images)
    assert used["mixed_text"] == len(safe_images - safe_captions)
    assert used["mixed_image"] == len(safe_captions - safe_images)
    assert used["coherence"] == 13 - len(safe_images | safe_captions)
    assert "kept_text: 15 of 39 rows take part" in caplog.text
    steps = pd.read_csv(output / "steps.csv")
    assert set(OPTIONAL) <= set(steps)
    assert steps.loss.tail(3).mean() < steps.loss.head(3).mean()


def test_labels_of_other_methods_are_not_read(vit_material: Any) -> None:
    with_labels(vit_material.train, [False] * 13, [False] * 13)
    assert inputs.read_labels(vit_material.settings().method, vit_material.train) is None


def test_a_table_without_labels_is_taken_as_named(vit_material: Any, caplog: pytest.LogCaptureFixture) -> None:
    method = vit_material.settings(labels="heed").method
    labels = inputs.read_labels(method, vit_material.train)
    assert labels is not None and labels.caption.all() and labels.image.all() and len(labels.image) == 13
    assert "no column caption_is_unsafe or image_is_unsafe" in caplog.text


def test_labels_of_another_type_are_refused(vit_material: Any) -> None:
    table = io.read_table(vit_material.train)
    words = table.append_column("image_is_unsafe", pa.array(["yes"] * 13))
    pq.write_table(words, vit_material.train)
    with pytest.raises(io.DataError, match="image_is_unsafe is of type string, not bool; make the table again"):
        inputs.read_labels(vit_material.settings(labels="heed").method, vit_material.train)


def test_terms_about_safe_items_need_labels(vit_material: Any) -> None:
    values = vit_material.settings(weights=SHIELD, labels="heed").method.model_dump()
    with pytest.raises(ValidationError, match=r"weights\.kept_text is about safe items in unsafe places: set 'labels'"):
        MethodSettings.model_validate(values | {"labels": None})
