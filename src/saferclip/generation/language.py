"""LLaVA with another image encoder, and a classifier of toxic text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from saferclip import io, models
from saferclip.config import ImageToTextSettings, ToxicitySettings
from saferclip.diffusion import PRECISIONS

PREFIX = "vision_model."
POSITIONS = "embeddings.position_embedding.weight"
COUNTER = "embeddings.position_ids"  # older files hold it; it is no weight


@dataclass(frozen=True)
class Describer:
    """LLaVA, which answers questions about images."""

    model: Any
    processor: Any
    settings: ImageToTextSettings

    @classmethod
    def load(cls, settings: ImageToTextSettings, downloads: Mapping[str, Path], vision: Path | None) -> Describer:
        """Load LLaVA from its folder, with the image encoder of the CLIPModel in ``vision`` where that is given.

        Raises DataError where LLaVA cannot be loaded, and where the image encoder does not fit.
        """
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        folder = downloads[settings.model]
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model: Any = LlavaForConditionalGeneration.from_pretrained(
                str(folder), dtype=PRECISIONS[settings.precision], use_safetensors=True, **options
            )
            processor = AutoProcessor.from_pretrained(str(folder), **options)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise io.DataError(f"{folder}: cannot be loaded as LLaVA: {error}") from error
        if vision:
            replace_vision(model, vision, interpolate=settings.positions == "interpolate")
        # A batch's answers begin where its questions end.
        processor.tokenizer.padding_side = "left"
        return cls(model.to(models.default_device()).eval(), processor, settings)

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """One answer for each image and question, the likeliest word by word."""
        prompts = [self.settings.prompt.replace("{question}", question) for question in questions]
        inputs = self.processor(images=list(images), text=prompts, return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self.settings.max_new_tokens,
        )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]


def replace_vision(model: Any, folder: Path, interpolate: bool) -> None:
    """Put the image encoder of the CLIPModel in ``folder`` in the place of LLaVA's.

    With ``interpolate`` its table of positions is resized where LLaVA's images have another resolution.
    Raises DataError if the two are not of one shape.
    """
    tower = model.model.vision_tower
    current = {name.removeprefix(PREFIX): (name, tensor) for name, tensor in tower.state_dict().items()}
    given = _vision_weights(folder)
    if interpolate and POSITIONS in given and POSITIONS in current:
        given[POSITIONS] = resized(given[POSITIONS], len(current[POSITIONS][1]))
    weights = {name: tensor for name, (_, tensor) in current.items() if name != COUNTER}
    if _shapes(given) != _shapes(weights):
        raise io.DataError(_misfit(folder, given, weights))
    tower.load_state_dict({current[name][0]: tensor for name, tensor in given.items()}, strict=False)


def _vision_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a CLIPModel's image encoder, by their names within it."""
    weights = io.read_tensors(folder / "model.safetensors")
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    if not found:
        raise io.DataError(f"{folder / 'model.safetensors'}: holds no image encoder in the form of a CLIPModel")
    return {name: tensor for name, tensor in found.items() if name != COUNTER}


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def resized(positions: Tensor, count: int) -> Tensor:
    """A table of positions (1 + n * n, width) for another grid: (count, width). The first is the class token's."""
    old, new = round((len(positions) - 1) ** 0.5), round((count - 1) ** 0.5)
    if old == new:
        return positions
    grid = positions[1:].float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1].float(), grid.flatten(2)[0].T]).to(positions.dtype)


def _misfit(folder: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first difference between two encoders, in words."""
    for name, tensor in expected.items():
        if name not in given or given[name].shape != tensor.shape:
            found = f"shape {tuple(given[name].shape)}" if name in given else "nothing"
            break
    else:
        name = next(iter(given.keys() - expected.keys()))
        return f"{folder}: this image encoder has '{name}', which LLaVA's has not; both must be of one architecture"
    advice = "set positions to 'interpolate'" if name == POSITIONS else "both must be of one architecture"
    return f"{folder}: LLaVA's image encoder has '{name}' of shape {tuple(tensor.shape)}, this one {found}; {advice}"


@dataclass(frozen=True)
class Toxicity:
    """A classifier of text, one label of which is toxicity."""

    model: Any
    tokenizer: Any
    label: int
    settings: ToxicitySettings

    @classmethod
    def load(cls, settings: ToxicitySettings, downloads: Mapping[str, Path]) -> Toxicity:
        """Load a classifier from its folder.  Raises DataError if it cannot be loaded or does not know the label."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = downloads[settings.model]
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model = AutoModelForSequenceClassification.from_pretrained(str(folder), use_safetensors=True, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        except (OSError, ValueError) as error:
            raise io.DataError(f"{folder}: cannot be loaded as a classifier of text: {error}") from error
        labels = model.config.label2id
        if settings.label not in labels:
            raise io.DataError(f"{folder}: has no label '{settings.label}'; choose one of: {', '.join(labels)}")
        return cls(model.to(models.default_device()).eval(), tokenizer, labels[settings.label], settings)

    @torch.inference_mode()
    def scores(self, texts: Sequence[str]) -> list[float]:
        """Probability that a text is toxic; one that is too long is judged by its beginning."""
        scores: list[float] = []
        for start in range(0, len(texts), self.settings.batch_size):
            batch = list(texts[start : start + self.settings.batch_size])
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, truncation=True)
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            # Labels that do not exclude each other have a probability each.
            several = self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
            scores += (logits.sigmoid() if several else logits.softmax(dim=-1))[:, self.label].tolist()
        return scores
