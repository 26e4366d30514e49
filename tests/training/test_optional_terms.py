"""Terms of other methods within training: on which rows, with which settings, in which parts of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from saferclip import adapters, io, models
from saferclip.config import LossWeights, MethodSettings
from saferclip.training import causal, geometry, inputs, losses, similarity, train
from saferclip.training.losses import TERMS, Embeddings, References
from saferclip.training.tuner import Tuner

SAGE = {
    "weights": LossWeights(
        **dict.fromkeys(TERMS, 1.0), spread_text=1, spread_image=2, neighbourhood_text=3, neighbourhood_image=4
    ),
    "neighbourhood": {"neighbours": 2, "shift": 1.0},
}
CET = {
    "weights": LossWeights(
        **{name: 0 if name.startswith("preservation_cross") else 1 for name in TERMS}, causal_text=1, causal_image=2
    ),
    "causal": {"neighbours": 2, "similarity": -1.0, "own_share": 0.8},
}
MARGIN = {
    "cross_modal": "margin",
    "weights": LossWeights(
        **dict.fromkeys(TERMS, 1.0),
        similarity_text=1,
        similarity_image=2,
    ),
    "margin": {"margin": 0.1, "scale": 20.0},
}
METHODS = {"sage": SAGE, "cet": CET, "margin": MARGIN}


def names(changes: dict[str, Any]) -> list[str]:
    return [name for name in losses.active(changes["weights"]) if name not in TERMS]


def tuner_of(material: Any, **changes: Any) -> tuple[Tuner, inputs.Split, References]:
    """A fresh model with seeded adapters that are not zero, the training split, and its frozen embeddings."""
    settings = material.settings(precision="fp32", max_gradient_norm=1e9, **changes)
    torch.manual_seed(0)
    clip = models.load(material.base_model)
    tuner = Tuner(clip, adapters.attach(clip, settings.optimisation.lora), settings)
    for name, weight in tuner.weights.items():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    quadruples = inputs.read_split(material.train, clip)
    targets = inputs.read_targets(settings.method, material.train, material.neighbours)
    return tuner, quadruples, inputs.read_frozen(material.embeddings, targets, quadruples.images)


def run(material: Any, output: Path, **changes: Any) -> Path:
    train.train(material.settings(**changes), 0, output=output, state=output.with_name("state"), **material.files())
    return output


def written_out(tuned: Embeddings, frozen: References, scale: float, rows: dict[str, list[int]]) -> dict[str, float]:
    """Each optional term on the columns that it is about, of these rows."""

    def pair(column: str) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = rows[column]
        return getattr(tuned, column)[chosen], getattr(frozen, column)[chosen]

    text, image = pair("safe_text"), pair("safe_image")
    both = rows["safe_image"]  # captions are always there
    text_too = tuned.safe_text[both], frozen.safe_text[both]
    return {
        "spread_text": geometry.contraction(*text).item(),
        "spread_image": geometry.contraction(*image).item(),
        "neighbourhood_text": geometry.distortion(*text, frozen.shared["unsafe_direction_text"], 2, 1.0).item(),
        "neighbourhood_image": geometry.distortion(*image, frozen.shared["unsafe_direction_image"], 2, 1.0).item(),
        "causal_text": causal.joint_prediction_loss(*text_too, image[1], scale, 2, -1.0, 0.8).item(),
        "causal_image": causal.joint_prediction_loss(*image, text_too[1], scale, 2, -1.0, 0.8).item(),
        "similarity_text": similarity.divergence(*text_too, image[1], scale).item(),
        "similarity_image": similarity.divergence(*image, text_too[1], scale).item(),
    }


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_terms_are_of_the_rows_that_have_their_images(incomplete: Any, changes: dict[str, Any]) -> None:
    material = incomplete([0, 4, 11], [1, 4, 5, 6, 12])
    tuner, quadruples, frozen = tuner_of(material, batch_size=13, **changes)
    rows = torch.arange(13)
    pixels = next(quadruples.pictures.batches([rows]))
    tuned = tuner.embed(quadruples, rows, pixels)
    pictured = [row for row in range(13) if row not in (0, 4, 11)]
    expected = written_out(tuned, frozen, tuner.logit_scale, {"safe_text": list(range(13)), "safe_image": pictured})
    step = next(tuner.steps(rows, quadruples, frozen, "epoch"))
    assert set(names(changes)) <= set(step)
    for name in names(changes):
        assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name
        assert name.startswith("spread") or step[name] > 1e-3, name


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_rows_are_compared_within_their_micro_batch(vit_material: Any, changes: dict[str, Any]) -> None:
    tuner, quadruples, frozen = tuner_of(vit_material, batch_size=13, accumulation=2, **changes)
    expected: dict[str, float] = dict.fromkeys(names(changes), 0.0)
    for rows in torch.split(torch.arange(13), 7):
        pixels = next(quadruples.pictures.batches([rows]))
        tuned, own = tuner.embed(quadruples, rows, pixels), list(range(len(rows)))
        values = written_out(tuned, frozen.select(rows, "cpu"), tuner.logit_scale, dict.fromkeys(tuned._fields, own))
        for name in expected:
            expected[name] += values[name] * len(rows) / 13
    step = next(tuner.steps(torch.arange(13), quadruples, frozen, "epoch"))
    assert {name: step[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_directions_are_of_rows_with_both_images_and_of_frozen_embeddings(incomplete: Any) -> None:
    material = incomplete([0, 4, 11], [1, 4, 5, 6, 12])
    _, _, frozen = tuner_of(material)
    embedded = io.read_tensors(material.embeddings)
    both = [2, 3, 7, 8, 9, 10]
    for modality, column, rows in (("text", "caption", list(range(13))), ("image", "image", both)):
        safe, unsafe = (embedded[f"train.{kind}_{column}"][rows].double().numpy() for kind in ("safe", "unsafe"))
        between = unsafe.mean(axis=0) - safe.mean(axis=0)
        found = frozen.shared[f"unsafe_direction_{modality}"]
        assert found.tolist() == pytest.approx((between / (between @ between) ** 0.5).tolist(), abs=1e-6)
        assert not found.requires_grad


def gradient_of(material: Any, only: str, changes: dict[str, Any]) -> dict[str, float]:
    """Greatest gradient of each adapter weight, of one term alone."""
    weights = LossWeights(**{**dict.fromkeys(TERMS, 0.0), only: 1.0})
    tuner, quadruples, frozen = tuner_of(material, batch_size=13, **{**changes, "weights": weights})
    next(tuner.steps(torch.arange(13), quadruples, frozen, "epoch"))
    return {
        name: 0.0 if weight.grad is None else weight.grad.abs().max().item() for name, weight in tuner.weights.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_term_tunes_the_encoder_that_it_is_about(vit_material: Any, method: str) -> None:
    changes = METHODS[method]
    for name in names(changes):
        if name.startswith("spread"):
            continue  # zero unless the space has contracted
        found = gradient_of(vit_material, name, changes)
        for weight, size in found.items():
            own = (".visual." in weight) == name.endswith("image")
            assert (size > 0) == own, (name, weight)


def test_spread_pulls_a_contracted_space_apart(vit_material: Any) -> None:
    weights = LossWeights(**dict.fromkeys(TERMS, 0.0), spread_text=1, spread_image=1)
    tuner, quadruples, frozen = tuner_of(vit_material, batch_size=13, weights=weights)
    # As if the base model had spread further than the tuned one does.
    corners = torch.eye(13, frozen.safe_text.shape[1])
    wide = frozen._replace(safe_text=corners, safe_image=corners)
    losses_of = [next(tuner.steps(torch.arange(13), quadruples, wide, "epoch")) for _ in range(5)]
    for name in ("spread_text", "spread_image"):
        assert losses_of[0][name] > losses_of[-1][name] > 0, name


@pytest.mark.parametrize("method", METHODS)
def test_training_repeats_and_resumes_bit_by_bit(
    vit_material: Any, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, same_run: Any
) -> None:
    unbroken = run(vit_material, tmp_path / "one" / "run", **METHODS[method])
    steps = pd.read_csv(unbroken / "steps.csv")
    assert set(names(METHODS[method])) <= set(steps)
    assert steps.loss.iloc[-1] < steps.loss.iloc[0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(vit_material, tmp_path / "two" / "run", **METHODS[method])
    assert same_run(unbroken, run(vit_material, tmp_path / "two" / "run", **METHODS[method]))
    record = io.read_json(unbroken / "record.json")
    assert set(names(METHODS[method])) <= set(record["rows"])


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(
    vit_material: Any, tmp_path: Path, method: str, group: Callable[..., list[Any]]
) -> None:
    """Spread and neighbourhoods are those of the whole micro-batch, whoever embedded its rows."""
    changes = {"precision": "fp32", "batch_size": 8, "epochs": 2, **METHODS[method]}
    commands = group(2, vit_material, "two", changes)
    one = run(vit_material, tmp_path / "one", **changes)
    assert [command.wait() for command in commands] == [0, 0], commands[1].text
    first, second = (pd.read_csv(folder / "steps.csv") for folder in (one, tmp_path / "two"))
    measured = ["loss", *names(METHODS[method]), "gradient_norm"]
    pd.testing.assert_frame_equal(first[measured], second[measured], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_term_without_its_settings_is_refused(vit_material: Any, method: str) -> None:
    section = next(name for name in METHODS[method] if name not in ("weights", "cross_modal"))
    values = vit_material.settings(**METHODS[method]).method
    with pytest.raises(ValidationError, match=f"so the section '{section}' must be given"):
        MethodSettings.model_validate(values.model_dump() | {section: None})


def test_terms_without_weight_are_not_computed() -> None:
    weights = LossWeights(**dict.fromkeys(TERMS, 1.0), spread_text=0, neighbourhood_image=0.0)
    assert losses.active(weights) == TERMS
    assert set(losses.OPTIONAL) | set(TERMS) == set(LossWeights.model_fields)
