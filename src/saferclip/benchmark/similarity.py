"""How alike two captions are: by the run's own CLIP, or by JINA-CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saferclip import io, models
from saferclip.config import JinaClipSettings
from saferclip.downloads import only_file

ENCODING_BATCH = 256
POOLED = "text_embeds"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class BaseModel:
    """The text encoder of the run's base model."""

    def __init__(self, folder: Path) -> None:
        self._clip = models.load(folder, models.default_device())

    def compare(self, safe: Sequence[str], unsafe: Sequence[str]) -> np.ndarray:
        encoded = (models.encode_texts(self._clip, texts, ENCODING_BATCH) for texts in (safe, unsafe))
        first, second = encoded
        return (first * second).sum(1).numpy()

    def report(self) -> dict[str, Any]:
        return {"kind": "base model"}


class JinaClip:
    """JINA-CLIP's text encoder in ONNX, from a folder with its model and its tokenizer."""

    def __init__(self, settings: JinaClipSettings, folder: Path) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        from tokenizers import Tokenizer

        self._settings = settings
        model = only_file(folder, ["text_model.onnx"])
        try:
            self._tokenizer = Tokenizer.from_file(str(only_file(folder, ["tokenizer.json"])))
            available = onnxruntime.get_available_providers()
            providers = [name for name in PROVIDERS if name in available]
            self._session = onnxruntime.InferenceSession(str(model), providers=providers)
        except io.DataError:
            raise
        except Exception as error:  # both raise bare exceptions of their own
            raise io.DataError(f"{model}: cannot be loaded with the tokenizer beside it: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._outputs = [given.name for given in self._session.get_outputs()]

    def compare(self, safe: Sequence[str], unsafe: Sequence[str]) -> np.ndarray:
        return (self.encode(safe) * self.encode(unsafe)).sum(axis=1)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as unit vectors, float array of shape (len(texts), dim).

        A batch holds texts of one length, so that nothing is padded and it does not matter whether a model of this
        kind takes a mask; a batch of any size gives the same embeddings.
        """
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(row)
        embedded: dict[int, np.ndarray] = {}
        for rows in by_length.values():
            for start in range(0, len(rows), self._settings.batch_size):
                batch = rows[start : start + self._settings.batch_size]
                embedded.update(
                    zip(batch, self._embed(np.array([tokens[row] for row in batch], np.int64)), strict=True)
                )
        return np.stack([embedded[row] for row in range(len(texts))])

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """Unit vectors (batch, dim) of token ids (batch, length): the model's own pooling, or the mean over tokens."""
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        chosen = POOLED if POOLED in self._outputs else self._outputs[0]
        (found,) = self._session.run([chosen], {name: value for name, value in known.items() if name in self._inputs})
        vectors = np.asarray(found, dtype=np.float32)
        if vectors.ndim == 3:
            vectors = vectors.mean(axis=1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def report(self) -> dict[str, Any]:
        return {"kind": "JINA-CLIP, text encoder in ONNX", "model": self._settings.model}
