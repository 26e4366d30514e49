"""Similarity of captions by an ONNX text model laid out as JINA-CLIP's, and by the base model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

from saferclip import io, models
from saferclip.benchmark import similarity
from saferclip.config import JinaClipSettings


def jina(folder: Path, batch_size: int = 3) -> similarity.JinaClip:
    return similarity.JinaClip(JinaClipSettings(model="jina-clip", batch_size=batch_size), folder)


@pytest.mark.parametrize("pooled", [True, False], ids=["text_embeds", "one vector a token"])
@pytest.mark.parametrize("mask", [True, False], ids=["with mask", "without mask"])
def test_embeddings_are_the_models_own_for_each_text_alone(
    llm: ModuleType, kit: SimpleNamespace, tmp_path: Path, mask: bool, pooled: bool
) -> None:
    llm.write_jina(tmp_path, mask=mask, pooled=pooled)
    texts = [*kit.SAFE, *kit.SAFE[:2], "a"]

    encoded = jina(tmp_path).encode(texts)

    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/text_model.onnx"))
    for text, row in zip(texts, encoded, strict=True):
        from tokenizers import Tokenizer

        ids = np.array([Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids])
        (plain,) = session.run(None, {"input_ids": ids, **({"attention_mask": np.ones_like(ids)} if mask else {})})
        vector = plain[0] if pooled else plain[0].mean(axis=0)
        np.testing.assert_allclose(row, vector / np.linalg.norm(vector), rtol=1e-5, atol=1e-6)


def test_the_batch_does_not_matter(llm: ModuleType, kit: SimpleNamespace, tmp_path: Path) -> None:
    llm.write_jina(tmp_path)
    np.testing.assert_allclose(jina(tmp_path, 1).encode(kit.SAFE), jina(tmp_path, 64).encode(kit.SAFE), atol=1e-6)


def test_small_edits_are_more_alike_than_other_captions(llm: ModuleType, kit: SimpleNamespace, tmp_path: Path) -> None:
    llm.write_jina(tmp_path)
    edited = [f"{caption.rstrip('.')} next to a pistol" for caption in kit.SAFE]
    same = jina(tmp_path).compare(kit.SAFE, kit.SAFE)
    near = jina(tmp_path).compare(kit.SAFE, edited)
    far = jina(tmp_path).compare(kit.SAFE, edited[1:] + edited[:1])
    np.testing.assert_allclose(same, 1, atol=1e-5)
    assert near.shape == (len(kit.SAFE),) and near.mean() > far.mean()


def test_a_folder_without_the_model_is_named(llm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"has no text_model.onnx file"):
        jina(tmp_path)
    llm.write_jina(tmp_path)
    (tmp_path / "onnx/text_model.onnx").write_bytes(b"<html>")
    with pytest.raises(io.DataError, match=r"text_model.onnx: cannot be loaded"):
        jina(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(io.DataError, match=r"has no tokenizer.json file"):
        jina(tmp_path)


def test_the_base_model_compares_by_cosine(tiny_clip_folder: Path, kit: SimpleNamespace) -> None:
    clip = models.load(tiny_clip_folder)
    safe, unsafe = kit.SAFE[:4], kit.SAFE[4:8]
    expected = (models.encode_texts(clip, safe, 1) * models.encode_texts(clip, unsafe, 1)).sum(1).numpy()
    np.testing.assert_allclose(similarity.BaseModel(tiny_clip_folder).compare(safe, unsafe), expected, atol=1e-5)
