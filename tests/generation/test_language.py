"""LLaVA's encoder replaced, weight by weight; toxicity as the classifier's own probabilities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saferclip import io
from saferclip.config import ImageToTextSettings
from saferclip.generation.language import Describer, Toxicity, resized


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 32, 3), dtype=np.uint8))


def test_the_tower_is_the_exported_encoder(
    asking: ImageToTextSettings, downloads: Mapping[str, Path], clip_model_folder: Path
) -> None:
    from transformers import CLIPModel

    clip: Any = CLIPModel.from_pretrained(clip_model_folder)
    describer = Describer.load(asking, downloads, clip_model_folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = clip.vision_model(pixels, output_hidden_states=True).hidden_states
        found = describer.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        own = Describer.load(asking, downloads, None).model.model.vision_tower(pixels, output_hidden_states=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(own.hidden_states[-1], expected[-1])


def test_only_the_tower_changes(
    asking: ImageToTextSettings, downloads: Mapping[str, Path], clip_model_folder: Path
) -> None:
    own = Describer.load(asking, downloads, None).model.state_dict()
    for name, tensor in Describer.load(asking, downloads, clip_model_folder).model.state_dict().items():
        assert torch.equal(tensor, own[name]) != ("vision_tower" in name), name


def llava(small_models: ModuleType, clip_model_folder: Path, folder: Path, **changes: int) -> dict[str, Path]:
    """A LLaVA whose encoder has another shape."""
    small_models.llava(folder, io.read_json(clip_model_folder / "config.json")["vision_config"] | changes)
    return {"llava": folder}


def test_another_resolution_needs_other_positions(
    asking: ImageToTextSettings, small_models: ModuleType, clip_model_folder: Path, tmp_path: Path
) -> None:
    places = llava(small_models, clip_model_folder, tmp_path, image_size=64)
    with pytest.raises(
        io.DataError, match=r"position_embedding\.weight' of shape \(17, 32\), .* \(5, 32\); set positions"
    ):
        Describer.load(asking, places, clip_model_folder)
    settings = asking.model_copy(update={"positions": "interpolate"})
    describer = Describer.load(settings, places, clip_model_folder)
    assert len(describer.answer([image(0)], ["What is this?"])) == 1
    given = io.read_tensors(clip_model_folder / "model.safetensors")
    tower = describer.model.model.vision_tower.state_dict()
    positions = next(tensor for name, tensor in tower.items() if name.endswith("position_embedding.weight"))
    torch.testing.assert_close(positions[0], given["vision_model.embeddings.position_embedding.weight"][0])


def test_positions_of_the_same_grid_stay_and_constant_ones_stay_constant() -> None:
    positions = torch.randn(17, 8)
    assert torch.equal(resized(positions, 17), positions)
    torch.testing.assert_close(resized(torch.ones(17, 8), 50), torch.ones(50, 8))


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 2}, {"num_hidden_layers": 0}])
def test_another_architecture_is_refused(
    changes: dict[str, int],
    asking: ImageToTextSettings,
    small_models: ModuleType,
    clip_model_folder: Path,
    tmp_path: Path,
) -> None:
    places = llava(small_models, clip_model_folder, tmp_path, **changes)
    with pytest.raises(io.DataError, match="both must be of one architecture"):
        Describer.load(asking.model_copy(update={"positions": "interpolate"}), places, clip_model_folder)


def test_what_is_no_clip_model_is_refused(
    asking: ImageToTextSettings, downloads: Mapping[str, Path], tmp_path: Path
) -> None:
    io.write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(io.DataError, match="holds no image encoder in the form of a CLIPModel"):
        Describer.load(asking, downloads, tmp_path)


def test_what_is_no_llava_is_refused(asking: ImageToTextSettings, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match="cannot be loaded as LLaVA"):
        Describer.load(asking, {"llava": tmp_path}, None)


def test_decoding_is_greedy_and_ends_in_time(asking: ImageToTextSettings, downloads: Mapping[str, Path]) -> None:
    describer = Describer.load(asking, downloads, None)
    torch.manual_seed(1)
    first = describer.answer([image(0), image(1)], ["What is this?", "Describe this image in one sentence."])
    torch.manual_seed(2)
    assert first == describer.answer([image(0), image(1)], ["What is this?", "Describe this image in one sentence."])
    assert all("USER" not in text and "<image>" not in text for text in first)
    # Single bytes are the tokens; those that are no text come out as one sign each.
    assert all(len(text) <= asking.max_new_tokens for text in first)


def test_labels_that_do_not_exclude_each_other_have_a_probability_each(
    asking: ImageToTextSettings, downloads: Mapping[str, Path]
) -> None:
    toxicity = Toxicity.load(asking.toxicity, downloads)
    texts = ["a cup on a table", "a pistol", "a much longer sentence about a skull by the sea"]
    scores = toxicity.scores(texts)
    for text, score in zip(texts, scores, strict=True):
        with torch.inference_mode():
            logits = toxicity.model(**toxicity.tokenizer(text, return_tensors="pt")).logits[0]
        assert score == pytest.approx(1 / (1 + np.exp(-float(logits[0]))), abs=1e-4)
    assert toxicity.scores([]) == []
    assert 0 < toxicity.scores(["word " * 1000])[0] < 1


def test_labels_that_exclude_each_other_share_one(
    asking: ImageToTextSettings, downloads: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(downloads["toxicity"], tmp_path / "toxicity")
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "single_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    toxicity = Toxicity.load(asking.toxicity, {"toxicity": folder})
    with torch.inference_mode():
        logits = toxicity.model(**toxicity.tokenizer("a pistol", return_tensors="pt")).logits[0]
    assert toxicity.scores(["a pistol"])[0] == pytest.approx(float(logits.softmax(-1)[0]), abs=1e-5)


def test_an_unknown_label_is_refused(asking: ImageToTextSettings, downloads: Mapping[str, Path]) -> None:
    settings = asking.toxicity.model_copy(update={"label": "rude"})
    with pytest.raises(io.DataError, match=r"has no label 'rude'; choose one of: .*, severe_toxic, threat, toxic"):
        Toxicity.load(settings, downloads)
