"""Unit vectors of points in hyperbolic space: their products rank as the distance does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from saferclip import heads, hyperbolic, io, metrics, models
from saferclip.heads import Head

DIM = 5
HEAD = Head(curvature=0.7, text_scale=0.4, image_scale=0.3, largest=3.0, text_limit=1.2, image_limit=1.5)


def features(count: int, seed: int) -> Tensor:
    return 2 * torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def point(feature: Tensor, scale: float, head: Head) -> list[float]:
    """The exponential map, in plain arithmetic."""
    vector = [scale * value for value in feature.double().tolist()]
    length = math.hypot(*vector)
    root = math.sqrt(head.curvature)
    return [value * math.sinh(min(root * length, head.largest)) / (root * length) for value in vector]


def distance(left: list[float], right: list[float], curvature: float) -> float:
    times = [math.sqrt(1 / curvature + sum(value**2 for value in row)) for row in (left, right)]
    inner = sum(a * b for a, b in zip(left, right, strict=True)) - times[0] * times[1]
    return math.acosh(max(1.0, -curvature * inner)) / math.sqrt(curvature)


def test_embeddings_are_unit_vectors() -> None:
    for modality in ("text", "image"):
        found = HEAD.embed(features(50, 1), modality)  # type: ignore[arg-type]
        assert found.shape == (50, DIM + 3) and found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(50), rtol=0, atol=1e-6)
    farthest = HEAD.embed(1000 * features(3, 1), "image")
    torch.testing.assert_close(farthest.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("query", ["text", "image"])
def test_ranks_in_both_directions_are_those_of_the_distance(query: str) -> None:
    """Brute force over all pairs, points of very different radius among them."""
    spread = torch.linspace(0.05, 3, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(0)), None]
    raw = {"text": features(60, 2) * spread, "image": features(60, 3) * spread.flip(0)}
    scales = {"text": HEAD.text_scale, "image": HEAD.image_scale}
    places = {name: [point(row, scales[name], HEAD) for row in rows] for name, rows in raw.items()}
    gallery = "image" if query == "text" else "text"
    distances = [[distance(one, other, HEAD.curvature) for other in places[gallery]] for one in places[query]]
    expected = [1 + sum(other < row[place] for other in row) for place, row in enumerate(distances)]
    unit = {name: HEAD.embed(rows, name) for name, rows in raw.items()}  # type: ignore[arg-type]
    correct = torch.arange(60)
    assert metrics.ranks(unit[query], unit[gallery], correct, 7).tolist() == expected
    found = metrics.top_k(unit[query], unit[gallery], 5, 7).position
    for row, best in zip(distances, found.tolist(), strict=True):
        assert best == sorted(range(60), key=row.__getitem__)[:5]
    assert len(set(expected)) > 20, "this shows nothing"


def test_a_product_tells_the_distance() -> None:
    texts, images = features(9, 4), features(9, 5)
    products = metrics.similarities(HEAD.embed(texts, "text"), HEAD.embed(images, "image"))
    for text, image, product in zip(texts, images, products, strict=True):
        expected = distance(point(text, HEAD.text_scale, HEAD), point(image, HEAD.image_scale, HEAD), HEAD.curvature)
        inner = float(product) * HEAD.bound**2
        assert math.acosh(-HEAD.curvature * inner) / math.sqrt(HEAD.curvature) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_traversal_moves_far_queries_to_the_limit_on_their_way_to_the_root(modality: Any) -> None:
    limit = {"text": HEAD.text_limit, "image": HEAD.image_limit}[modality]
    scale = {"text": HEAD.text_scale, "image": HEAD.image_scale}[modality]
    assert limit is not None
    raw = features(40, 6) * torch.linspace(0.05, 2.5, 40)[:, None]
    before = HEAD.embed(raw, modality)
    after = HEAD.as_queries(before)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(40), rtol=0, atol=1e-6)
    moved = 0
    for feature, old, new in zip(raw, before, after, strict=True):
        length = scale * math.hypot(*feature.double().tolist())  # below 3 / sqrt(0.7), the largest
        if length <= limit:
            assert torch.equal(old, new)
            continue
        moved += 1
        place = HEAD.points(new)
        assert float(hyperbolic.radius(place, HEAD.curvature)) == pytest.approx(limit, abs=1e-5)
        direction = torch.nn.functional.cosine_similarity(place, feature.double(), dim=0)
        assert float(direction) == pytest.approx(1, abs=1e-9)
        assert bool((new[-3] < 0) == (old[-3] < 0)) and new[-1 if modality == "image" else -2] == 0, "still of its kind"
    assert 5 < moved < 35


def test_traversal_leaves_absent_items_and_heads_without_limits_alone() -> None:
    rows = torch.cat([torch.zeros(1, DIM + 3), HEAD.embed(10 * features(2, 7), "text")])
    assert torch.equal(HEAD.as_queries(rows)[0], rows[0])
    assert not torch.equal(HEAD.as_queries(rows)[1:], rows[1:])
    none = HEAD.model_copy(update={"text_limit": None, "image_limit": None})
    assert torch.equal(none.as_queries(rows), rows)


def test_class_embeddings_are_centroids() -> None:
    prompts = HEAD.embed(features(12, 8), "text").view(3, 4, -1)
    found = HEAD.ensemble(prompts)
    expected = hyperbolic.centroid(HEAD.points(prompts), HEAD.curvature)
    torch.testing.assert_close(HEAD.points(found), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    one = HEAD.ensemble(prompts[:, :1])
    torch.testing.assert_close(one, prompts[:, 0], rtol=0, atol=1e-6)


@pytest.fixture
def folder(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    """A model folder with a head."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip_folder, folder)
    write_head(folder, HEAD.model_dump())
    return folder


def write_head(folder: Path, head: Any) -> None:
    path = folder / models.ARCHITECTURE
    path.write_text(json.dumps({**io.read_json(path), heads.SECTION: head}))


def test_a_folder_with_a_head_embeds_through_it(folder: Path, tiny_clip_folder: Path) -> None:
    clip, plain = models.load(folder), models.load(tiny_clip_folder)
    assert clip.head == HEAD and plain.head is None
    captions = ["a cat", "two buses on a road"]
    tokens = plain.tokenize(captions)
    with torch.no_grad():
        raw = plain.model.encode_text(tokens)  # type: ignore[operator]
    found = models.encode_texts(clip, captions, 4)
    torch.testing.assert_close(found, HEAD.embed(raw, "text"), rtol=0, atol=1e-6)
    picture = Image.new("RGB", (32, 32), "red")
    with torch.no_grad():
        raw = plain.model.encode_image(plain.preprocess(picture)[None])  # type: ignore[operator]
    torch.testing.assert_close(models.encode_images(clip, [picture], 4), HEAD.embed(raw, "image"), rtol=0, atol=1e-6)
    # open_clip itself loads the weights, and knows nothing of the head.
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert torch.equal(model.state_dict()["text_projection"], plain.model.state_dict()["text_projection"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curvature": 0.0}, "lorentz_head.curvature"),
        ({"curvature": math.inf}, "lorentz_head.curvature"),
        ({"largest": 50.0}, "lorentz_head.largest"),
        ({"text_limit": -1.0}, "lorentz_head.text_limit"),
        ({"other": 1.0}, "lorentz_head.other"),
        ({"text_scale": "much"}, "lorentz_head.text_scale"),
    ],
)
def test_a_head_that_is_not_in_order_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    write_head(folder, {**HEAD.model_dump(), **change})
    with pytest.raises(io.DataError, match=f"{models.ARCHITECTURE}: {message}"):
        models.load(folder)
