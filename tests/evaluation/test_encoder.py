from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from saferclip import io, models
from saferclip.evaluation.encoder import Encoder, Encoders


def cell(colour: str) -> dict[str, bytes]:
    return {"bytes": io.encode_png(Image.new("RGB", (32, 32), colour))}


@pytest.fixture
def encoder(tiny_clip_folder: Path) -> Encoder:
    return Encoder.load(tiny_clip_folder, batch_size=2, name="tiny")


def test_embeddings_are_the_models_in_the_order_asked_for(encoder: Encoder) -> None:
    captions = ["a cat", "a red bus under a tree", "a cup"]
    encoder.texts(captions[1:])
    torch.testing.assert_close(encoder.texts(captions), models.encode_texts(encoder.clip, captions, batch_size=8))
    pictures = [cell(colour) for colour in ("red", "green", "blue")]
    plain = models.encode_images(encoder.clip, map(io.decode_image, pictures), batch_size=8)
    torch.testing.assert_close(encoder.images(pictures), plain)


def test_equal_items_are_embedded_once_and_equally(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = models.encode_texts

    def noted(clip: models.Clip, texts: list[str], *options: object) -> torch.Tensor:
        asked.extend(texts)
        return encode(clip, texts, *options)

    monkeypatch.setattr(models, "encode_texts", noted)
    found = encoder.texts(["a cat", "a bus", "a cat"])
    again = encoder.texts(["a bus", "a tree", "a cat"])
    assert sorted(asked) == ["a bus", "a cat", "a tree"]
    assert torch.equal(found[0], found[2])
    assert torch.equal(again[0], found[1])
    assert torch.equal(again[2], found[0])


def test_pictures_are_taken_batch_by_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number, as many are in memory as a batch has; a streamed result is that of a list."""
    alive: list[int] = []
    colours = ("red", "green", "blue", "red", "white", "black", "green", "navy")
    features = models.image_features

    def noted(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        alive.append(given - len(images) - sum(encoded))
        encoded.append(len(images))
        return features(model, images)

    given, encoded = 0, list[int]()

    def cells() -> Iterator[dict[str, bytes]]:
        nonlocal given
        repeated = set[str]()
        for colour in colours:
            given += colour not in repeated
            repeated.add(colour)
            yield cell(colour)

    monkeypatch.setattr(models, "image_features", noted)
    streamed = encoder.images(cells(), len(colours))
    assert (encoded, alive) == ([2, 2, 2], [0, 0, 0])
    whole = Encoder(encoder.clip, encoder.batch_size, "whole").images([cell(colour) for colour in colours])
    assert torch.equal(streamed, whole)


def test_nothing_gives_nothing(encoder: Encoder) -> None:
    assert len(encoder.texts([])) == len(encoder.images([])) == 0


def test_the_untuned_model_is_its_own_base(tiny_clip_folder: Path, tiny_resnet_clip_folder: Path) -> None:
    untuned = Encoders.load(tiny_clip_folder, tiny_clip_folder.parent / "." / tiny_clip_folder.name, batch_size=2)
    assert untuned.model is untuned.base
    tuned = Encoders.load(tiny_resnet_clip_folder, tiny_clip_folder, batch_size=2)
    assert tuned.model is not tuned.base


def test_a_model_whose_embeddings_are_no_numbers_is_refused(encoder: Encoder) -> None:
    with torch.no_grad():
        for weights in encoder.clip.model.parameters():
            weights.fill_(torch.nan)
    with pytest.raises(io.DataError, match="tiny: embeds inputs as values that are no numbers"):
        encoder.texts(["a cat"])
    with pytest.raises(io.DataError, match="tiny: embeds inputs as values that are no numbers"):
        encoder.images([cell("red")])
