"""Retrieval on the validation split, with and without all images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saferclip.training.inputs import Images
from saferclip.training.losses import Embeddings
from saferclip.training.validation import validation_rows, validation_scores


def all_images(rows: int) -> Images:
    return Images(torch.ones(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool))


def without(rows: int, safe: list[int], unsafe: list[int]) -> Images:
    images = all_images(rows)
    images.safe[safe] = False
    images.unsafe[unsafe] = False
    return images


def some_embeddings(rows: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(rows, 4, generator=generator)
    columns = [common + 0.7 * torch.randn(rows, 4, generator=generator) for _ in range(4)]
    return Embeddings(*(torch.nn.functional.normalize(column, dim=-1) for column in columns))


def test_validation_scores_equal_plain_loops() -> None:
    embedded = some_embeddings(9)

    def share(queries: Tensor, *galleries: Tensor) -> float:
        hits = 0
        for row, query in enumerate(queries):
            similarity = [float(query @ item) for gallery in galleries for item in gallery]
            hits += similarity.index(max(similarity)) == row
        return 100 * hits / len(queries)

    safe_text, unsafe_text, safe_image, unsafe_image = embedded
    expected = {
        "text_to_image/recall@1": share(safe_text, safe_image),
        "image_to_text/recall@1": share(safe_image, safe_text),
        "unsafe_text_to_image/recall@1": share(unsafe_text, safe_image, unsafe_image),
        "unsafe_image_to_text/recall@1": share(unsafe_image, safe_text, unsafe_text),
    }
    assert len(set(expected.values())) > 2, "the directions are too alike to tell them apart"
    text, image, unsafe_text, unsafe_image = expected.values()
    # With p and r the sums of two: 2 (p/2) (r/2) / (p/2 + r/2) = p r / (p + r).
    score = (text + image) * (unsafe_text + unsafe_image) / sum(expected.values())
    found = validation_scores(embedded, all_images(9))
    assert found == pytest.approx({**expected, "selection_score": score})


def test_selection_score_of_a_model_that_redirects_nothing_is_zero() -> None:
    safe = torch.eye(4)
    # Every unsafe query meets its own unsafe partner.
    unsafe = torch.cat([torch.zeros(4, 4), torch.eye(4)], dim=1)
    safe = torch.cat([safe, torch.zeros(4, 4)], dim=1)
    scores = validation_scores(Embeddings(safe, unsafe, safe, unsafe), all_images(4))
    assert scores["text_to_image/recall@1"] == 100 and scores["unsafe_text_to_image/recall@1"] == 0
    assert scores["selection_score"] == 0


def test_rows_without_an_image_are_neither_query_nor_in_the_gallery() -> None:
    """As if the table held only the rows that a direction can use, whatever stands in the others."""
    embedded = some_embeddings(12)
    images = without(12, safe=[0, 5, 7], unsafe=[1, 5, 9, 10])
    embedded.safe_image[~images.safe] = math.nan
    embedded.unsafe_image[~images.unsafe] = math.nan
    found = validation_scores(embedded, images)
    for direction, rows in {
        "text_to_image": images.safe,
        "image_to_text": images.safe,
        "unsafe_text_to_image": images.safe & images.unsafe,
        "unsafe_image_to_text": images.unsafe,
    }.items():
        alone = Embeddings(*(column[rows].nan_to_num() for column in embedded))  # for the other directions
        expected = validation_scores(alone, all_images(int(rows.sum())))[f"{direction}/recall@1"]
        assert found[f"{direction}/recall@1"] == expected
    assert validation_rows(images) == {
        "text_to_image": 9,
        "image_to_text": 9,
        "unsafe_text_to_image": 6,
        "unsafe_image_to_text": 8,
    }


def test_without_unsafe_images_the_selection_score_is_that_of_preservation() -> None:
    embedded = some_embeddings(9)
    scores = validation_scores(embedded, without(9, [], list(range(9))))
    assert scores.keys() == {"text_to_image/recall@1", "image_to_text/recall@1", "selection_score"}
    mean = (scores["text_to_image/recall@1"] + scores["image_to_text/recall@1"]) / 2
    assert 0 < scores["selection_score"] == mean


def test_without_safe_images_only_unsafe_images_can_ask() -> None:
    scores = validation_scores(some_embeddings(9), without(9, list(range(9)), []))
    assert scores.keys() == {"unsafe_image_to_text/recall@1", "selection_score"}
    assert scores["selection_score"] == scores["unsafe_image_to_text/recall@1"]


def test_captions_alone_measure_nothing() -> None:
    assert validation_scores(some_embeddings(9), without(9, list(range(9)), list(range(9)))) == {}
