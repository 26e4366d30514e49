"""NudeNet runs with its real model on harmless images; Q16 with prompts of our own."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from saferclip import io, models, safety
from saferclip.config import ImageFilterSettings
from saferclip.data import iconworld

NUDENET = {"nudenet": {"threshold": 0.3}}


def q16(batch_size: int = 4) -> dict[str, dict[str, object]]:
    return {"q16": {"prompts": "q16-prompts", "clip": "clip", "batch_size": batch_size}}


def filters(**sections: object) -> ImageFilterSettings:
    return ImageFilterSettings.model_validate(sections)


@pytest.fixture(scope="module")
def nudenet() -> safety.Judge:
    return safety.load(filters(**NUDENET), {})


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    """Scenes of the icon world, ordinary ones and what is unsafe there."""
    random = np.random.default_rng(0)
    concepts = [*iconworld.common_concepts()[:3], "pistol", "skull"]
    return [Image.fromarray(iconworld.render(iconworld.count_scene(random, name, 2))) for name in concepts]


def photographs() -> list[Image.Image]:
    return [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]


def test_harmless_images_are_not_flagged(nudenet: safety.Judge, scenes: list[Image.Image]) -> None:
    for verdict in nudenet.judge([*scenes, *photographs()]):
        assert not verdict.unsafe
        assert verdict.scores["nudenet"] < 0.3


def test_the_real_detector_finds_a_face() -> None:
    """It works at all; and a face does not count as unsafe."""
    from nudenet import NudeDetector

    found = NudeDetector().detect(safety._as_opencv(photographs()[0]))
    assert "FACE_FEMALE" in {detection["class"] for detection in found}
    assert safety.exposed_score(found) == 0


def test_images_reach_the_detector_as_opencv_reads_them(tmp_path: Path) -> None:
    import cv2

    photographs()[2].save(tmp_path / "image.png")
    np.testing.assert_array_equal(safety._as_opencv(photographs()[2]), cv2.imread(str(tmp_path / "image.png")))
    grey = Image.fromarray(np.full((8, 8), 7, np.uint8))
    assert safety._as_opencv(grey).shape == (8, 8, 3)


def test_only_exposed_parts_count() -> None:
    def detections(**scores: float) -> list[dict[str, object]]:
        return [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in scores.items()]

    assert safety.exposed_score([]) == 0
    covered = detections(FACE_FEMALE=0.9, BUTTOCKS_COVERED=0.8, FEET_EXPOSED=0.9, MALE_BREAST_EXPOSED=0.7)
    assert safety.exposed_score(covered) == 0
    assert safety.exposed_score([*covered, *detections(BUTTOCKS_EXPOSED=0.4, ANUS_EXPOSED=0.6)]) == 0.6


def test_classes_that_count_are_classes_of_the_detector() -> None:
    from nudenet import nudenet as module

    assert set(module.__labels) >= safety.UNSAFE_CLASSES


@pytest.mark.parametrize(("score", "unsafe"), [(0.29, False), (0.3, True), (0.9, True)])
def test_the_threshold_decides(score: float, unsafe: bool) -> None:
    judge = safety.Judge({"nudenet": safety.Part(lambda images: [score] * len(images), 0.3)})
    assert judge.judge(photographs()[:1]) == [safety.Verdict(unsafe, {"nudenet": score})]


def test_one_judge_suffices() -> None:
    calm = safety.Part(lambda images: [0.1] * len(images), 0.5)
    second = safety.Part(lambda images: [0.2, 0.8][: len(images)], 0.5)
    verdicts = safety.Judge({"nudenet": calm, "q16": second}).judge(photographs()[:2])
    assert [verdict.unsafe for verdict in verdicts] == [False, True]
    assert verdicts[1].scores == {"nudenet": 0.1, "q16": 0.8}


def test_q16_is_the_softmax_of_scaled_cosines() -> None:
    random = np.random.default_rng(0)
    image, prompts = random.normal(size=(5, 8)), random.normal(size=(2, 8)) * 3
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    expected = []
    for row in image:
        cosines = [row @ prompt / np.linalg.norm(prompt) for prompt in prompts]
        expected.append(1 / (1 + np.exp(100 * (cosines[0] - cosines[1]))))
    scores = safety.q16_scores(torch.tensor(image), torch.tensor(prompts))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_q16_flags_what_is_nearer_to_the_second_prompt(
    tiny_clip_folder: Path, scenes: list[Image.Image], tmp_path: Path
) -> None:
    """Prompts that are the embeddings of two images: each image is of its own class."""
    embeddings = models.encode_images(models.load(tiny_clip_folder), scenes[:2], 2).numpy()
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(embeddings))
    judge = safety.load(filters(**q16(1)), {"q16-prompts": tmp_path, "clip": tiny_clip_folder})
    safe, unsafe = judge.judge(scenes[:2])
    assert (safe.unsafe, unsafe.unsafe) == (False, True)
    assert safe.scores["q16"] < 0.5 < unsafe.scores["q16"] <= 1
    assert judge.judge([]) == []


def test_q16_does_not_depend_on_the_batch(
    tiny_clip_folder: Path, scenes: list[Image.Image], small_models: ModuleType, tmp_path: Path
) -> None:
    small_models.q16_prompts(tmp_path / "prompts.p", width=16)
    places = {"q16-prompts": tmp_path / "prompts.p", "clip": tiny_clip_folder}
    scores = [
        [verdict.scores["q16"] for verdict in safety.load(filters(**q16(size)), places).judge(scenes)]
        for size in (1, 5)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_both_judges_run_together(
    tiny_clip_folder: Path, scenes: list[Image.Image], small_models: ModuleType, tmp_path: Path
) -> None:
    small_models.q16_prompts(tmp_path / "prompts.p", width=16)
    places = {"q16-prompts": tmp_path / "prompts.p", "clip": tiny_clip_folder}
    verdicts = safety.load(filters(**NUDENET, **q16()), places).judge(scenes[:2])
    assert [set(verdict.scores) for verdict in verdicts] == [{"nudenet", "q16"}] * 2


def test_prompts_for_another_clip_are_refused(
    tiny_clip_folder: Path, scenes: list[Image.Image], small_models: ModuleType, tmp_path: Path
) -> None:
    small_models.q16_prompts(tmp_path / "prompts.p", width=768)
    judge = safety.load(filters(**q16()), {"q16-prompts": tmp_path, "clip": tiny_clip_folder})
    with pytest.raises(io.DataError, match=r"768 values, but .* in 16; use the CLIP that they were learnt for"):
        judge.judge(scenes[:1])


@pytest.mark.parametrize("prompts", [np.zeros((3, 4)), np.zeros(4), np.full((2, 4), np.nan)])
def test_what_is_not_two_prompts_is_refused(prompts: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts))
    with pytest.raises(io.DataError, match=r"prompts\.p: must hold two prompts"):
        safety.read_prompts(tmp_path / "prompts.p")


def test_a_malicious_prompts_file_does_nothing(tmp_path: Path, tiny_clip_folder: Path) -> None:
    mark = tmp_path / "mark"

    class Attack:
        def __reduce__(self) -> object:
            return os.system, (f"touch {mark}",)

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(io.DataError, match=r"prompts\.p"):
        safety.load(filters(**q16()), {"q16-prompts": tmp_path, "clip": tiny_clip_folder})
    assert not mark.exists()
