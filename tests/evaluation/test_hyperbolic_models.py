"""A model with a head goes through every benchmark; what has no meaning in its space is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saferclip import heads, hyperbolic, io, metrics, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import drift, geometry, quadruples, retrieval
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.evaluate import EMBEDDINGS, evaluate
from saferclip.heads import ACROSS_ONLY, Head

HEAD = Head(curvature=1.0, text_scale=0.5, image_scale=0.5, largest=5.0, text_limit=0.2, image_limit=0.2)


@pytest.fixture
def model(tiny_resnet_clip_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_resnet_clip_folder, folder)
    path = folder / models.ARCHITECTURE
    path.write_text(json.dumps({**io.read_json(path), heads.SECTION: HEAD.model_dump()}))
    return folder


def test_every_benchmark_says_what_it_has_and_what_it_has_not(
    model: Path, tiny_clip_folder: Path, settings: EvaluationSettings, files: dict[str, Path], tmp_path: Path
) -> None:
    evaluate(settings, "hysac", 0, model, tiny_clip_folder, files, tmp_path / "hysac")
    evaluate(settings, "plain", 0, tiny_clip_folder, tiny_clip_folder, files, tmp_path / "plain")
    for benchmark in settings.benchmarks:
        found, plain = (io.read_evaluation(tmp_path / name / f"{benchmark}.json") for name in ("hysac", "plain"))
        assert plain.left_out == {}
        assert found.metrics.keys() | found.left_out.keys() == plain.metrics.keys()
        assert not found.metrics.keys() & found.left_out.keys()
        assert set(found.left_out.values()) <= {ACROSS_ONLY}
    drifted = io.read_evaluation(tmp_path / "hysac/drift.json")
    assert drifted.metrics == {} and set(drifted.left_out) == set(drift.METRICS)
    assert io.read_tensors(tmp_path / "hysac" / EMBEDDINGS) == {}


def test_spread_and_neighbours_have_no_meaning_in_another_space(
    model: Path, tiny_clip_folder: Path, settings: EvaluationSettings, files: dict[str, Path]
) -> None:
    measuring = settings.model_copy(update={"neighbours": 2})
    there = geometry.evaluate(files["test"], Encoders.load(model, tiny_clip_folder, 7), measuring)
    plain = geometry.evaluate(files["test"], Encoders.load(tiny_clip_folder, tiny_clip_folder, 7), measuring)
    assert set(plain.metrics) == set(geometry.METRICS) == set(there.left_out)
    assert there.metrics == {} and set(there.left_out.values()) == {ACROSS_ONLY}


def test_queries_search_from_where_traversal_puts_them(
    model: Path, settings: EvaluationSettings, files: dict[str, Path]
) -> None:
    """Ranks and first hits of unsafe captions by the distance, over all pairs, after the traversal."""
    encoder = Encoder.load(model, 7, "model")
    data = quadruples.embed(files["test"], encoder)
    rows = data.complete(data.embeddings)
    hits = retrieval.search(data, rows, "unsafe_text_to_image", settings.block_size)
    points = {column: HEAD.points(embeddings) for column, embeddings in data.embeddings.items()}
    radius = hyperbolic.radius(points["unsafe_caption"], HEAD.curvature)
    moved = points["unsafe_caption"] * (
        torch.tensor(0.2).double().sinh() / points["unsafe_caption"].norm(dim=1, keepdim=True)
    )
    assert (radius > 0.2).all(), "all of them are moved"
    gallery = torch.cat([points["unsafe_image"], points["safe_image"]])
    distance = hyperbolic.distance(moved, gallery, HEAD.curvature)
    expected = [int((row <= row[len(rows) + place]).sum()) for place, row in enumerate(distance)]
    assert hits.ranks.tolist() == expected
    assert hits.top.tolist() == distance.argmin(dim=1).tolist()
    unmoved = metrics.ranks(
        data.take(rows, "unsafe_caption"), hits.gallery.embeddings, len(rows) + torch.arange(len(rows)), 7
    )
    assert unmoved.tolist() != expected, "the traversal changes nothing here"


def test_classes_are_centroids_of_their_prompts(model: Path, tiny_clip_folder: Path) -> None:
    encoders = Encoders.load(model, tiny_clip_folder, 7)
    prompts = encoders.model.texts(["a cat", "the cat", "a bus", "the bus"]).view(2, 2, -1)
    torch.testing.assert_close(encoders.model.ensemble(prompts), HEAD.ensemble(prompts))
    assert encoders.model.across_only
    assert isinstance(encoders.base, Encoder) and not encoders.base.across_only
    plain = encoders.base.texts(["a cat", "the cat"]).view(1, 2, -1)
    assert torch.equal(encoders.base.ensemble(plain), metrics.ensemble_classifier(plain))
    assert torch.equal(encoders.base.queries(plain[0]), plain[0])
