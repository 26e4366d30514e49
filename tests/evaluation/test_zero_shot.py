from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from saferclip import io, models, statistics
from saferclip.config import EvaluationSettings
from saferclip.evaluation import zero_shot
from saferclip.evaluation.encoder import Encoders

Remove = Callable[[Path, str, list[int]], None]


@pytest.fixture(autouse=True)
def scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that sends every input somewhere else: an untrained one gives all images one class."""

    def vector(content: bytes) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(content))
        return functional.normalize(torch.randn(16, generator=generator), dim=0)

    def texts(_clip: models.Clip, captions: Sequence[str], *_: object) -> Tensor:
        return torch.stack([vector(caption.encode()) for caption in captions])

    def images(_clip: models.Clip, pictures: Iterable[Image.Image], *_: object) -> Tensor:
        return torch.stack([vector(picture.tobytes()) for picture in pictures])

    monkeypatch.setattr(models, "encode_texts", texts)
    monkeypatch.setattr(models, "encode_images", images)


def slow_predictions(path: Path, encoders: Encoders) -> dict[str, list[tuple[int, int, int]]]:
    """(row, label, predicted class) of every image, one image and one class at a time."""
    sets, found = io.read_json(path.with_suffix(".json")), {}
    clip = encoders.model.clip
    for name, task in sets.items():
        means = []
        for phrase in task["classes"]:
            prompts = models.encode_texts(clip, [template.format(phrase) for template in task["templates"]], 8)
            mean = sum(prompts.double().numpy()) / len(task["templates"])
            means.append(mean / np.linalg.norm(mean))
        found[name] = []
        for place, row in enumerate(io.read_table(path).to_pylist()):
            if row["set"] == name and row["image"] is not None:
                image = models.encode_images(clip, [io.decode_image(row["image"])], 1)[0].double().numpy()
                found[name].append((place, row["label"], int(np.argmax([mean @ image for mean in means]))))
    return found


@pytest.mark.parametrize("missing", [[], [1, 2, 9]])
def test_accuracy_is_the_mean_over_classes_and_over_sets(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove, missing: list[int]
) -> None:
    without(files["zero_shot"], "image", missing)
    found = zero_shot.evaluate(files["zero_shot"], encoders, settings)
    accuracies = []
    for name, predictions in slow_predictions(files["zero_shot"], encoders).items():
        by_class: dict[int, list[bool]] = {}
        for _, label, predicted in predictions:
            by_class.setdefault(label, []).append(label == predicted)
        accuracies.append(100 * np.mean([np.mean(outcomes) for outcomes in by_class.values()]))
        assert found.metrics[f"{name}/accuracy"].value == pytest.approx(accuracies[-1])
        rows = [row for row in found.ranks if row["direction"] == name]
        assert [row["query_id"] for row in rows] == [str(place) for place, _, _ in predictions]
        assert [row["rank"] == 1 for row in rows] == [label == predicted for _, label, predicted in predictions]
    assert found.metrics["mean/accuracy"].value == pytest.approx(np.mean(accuracies))
    assert found.metrics["mean/accuracy"].count == len(found.ranks) == 16 - len(missing)
    assert found.counts["without_image"] == len(missing)


def test_a_set_may_ask_for_the_share_of_all_images(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    without(files["zero_shot"], "image", [1, 2, 9])  # classes of different sizes
    described = io.read_json(files["zero_shot"].with_suffix(".json"))
    described["objects"] |= {"metric": "accuracy", "left_out": 7}
    described["colours"] |= {"metric": "mean_per_class", "left_out": 0}
    io.write_json(files["zero_shot"].with_suffix(".json"), described)
    found = zero_shot.evaluate(files["zero_shot"], encoders, settings)

    predictions = slow_predictions(files["zero_shot"], encoders)
    right = [100.0 * (label == predicted) for _, label, predicted in predictions["objects"]]
    accuracy = sum(right) / len(right)
    by_class = [
        [label == predicted for _, label, predicted in predictions["colours"] if label == one] for one in (0, 1)
    ]
    per_class = 100 * sum(sum(outcomes) / len(outcomes) for outcomes in by_class) / 2
    assert found.metrics["objects/accuracy"].value == pytest.approx(accuracy)
    assert found.metrics["colours/accuracy"].value == pytest.approx(per_class)
    assert found.metrics["mean/accuracy"].value == pytest.approx((accuracy + per_class) / 2)
    means = statistics.bootstrap_means(right, settings.bootstrap, settings.bootstrap_seed)
    low, high = np.percentile(means, [2.5, 97.5])
    assert (found.metrics["objects/accuracy"].low, found.metrics["objects/accuracy"].high) == pytest.approx((low, high))
    assert (found.counts["objects/left_out"], found.counts["objects/ambiguous_classes"]) == (7, 0)


def test_intervals_resample_images_within_classes_and_sets_independently(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    found = zero_shot.evaluate(files["zero_shot"], encoders, settings)
    labels = np.array([row["label"] for row in io.read_table(files["zero_shot"], ["label"]).to_pylist()])
    means = []
    for number, name in enumerate(("objects", "colours")):
        rows = [row for row in found.ranks if row["direction"] == name]
        outcomes = np.array([100.0 * (row["rank"] == 1) for row in rows])
        own = labels[[int(row["query_id"]) for row in rows]]
        random = np.random.default_rng(settings.bootstrap_seed + number)
        by_class = []
        for label in np.unique(own):
            members = outcomes[own == label]
            # One fewer than there are: small classes would else seem less variable than they are.
            draws = random.integers(len(members), size=(settings.bootstrap, len(members) - 1))
            by_class.append(members[draws].mean(axis=1))
        means.append(np.mean(by_class, axis=0))
        metric = found.metrics[f"{name}/accuracy"]
        assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(means[-1], [2.5, 97.5])))
        assert metric.low < metric.high
    mean = found.metrics["mean/accuracy"]
    assert (mean.low, mean.high) == pytest.approx(tuple(np.percentile(np.mean(means, axis=0), [2.5, 97.5])))


def test_a_set_without_images_is_left_out_of_the_mean(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    without(files["zero_shot"], "image", list(range(8)))
    found = zero_shot.evaluate(files["zero_shot"], encoders, settings)
    assert set(found.metrics) == {"colours/accuracy", "mean/accuracy"}
    assert found.metrics["mean/accuracy"].value == found.metrics["colours/accuracy"].value
    assert found.counts["objects/images"] == 0


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"objects": {"classes": ["a", "b", "c"], "templates": ["{}"]}}, "row 8 belongs to set 'colours'"),
        (
            {name: {"classes": ["a", "b"], "templates": ["{}"]} for name in ("objects", "colours")},
            "row 2 has label 2; set 'objects' has 2 classes",
        ),
    ],
)
def test_a_table_that_does_not_fit_its_classes_is_refused(
    files: dict[str, Path],
    encoders: Encoders,
    settings: EvaluationSettings,
    sets: dict[str, dict[str, list[str]]],
    message: str,
) -> None:
    io.write_json(files["zero_shot"].with_suffix(".json"), sets)
    with pytest.raises(io.DataError, match=message):
        zero_shot.evaluate(files["zero_shot"], encoders, settings)


def test_sets_without_any_image_are_refused(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    without(files["zero_shot"], "image", list(range(16)))
    with pytest.raises(io.DataError, match="no row has an image"):
        zero_shot.evaluate(files["zero_shot"], encoders, settings)
