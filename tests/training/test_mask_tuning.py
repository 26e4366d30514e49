"""Mask tuning through the training loop: its regularity against slow arithmetic, and runs that were interrupted."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from saferclip import io, masks, models, tuners
from saferclip.config import MaskSettings
from saferclip.training import gradient_dropout, inputs
from saferclip.training.losses import Embeddings, Present, References
from saferclip.training.processes import Processes
from saferclip.training.train import train
from saferclip.training.tuner import Tuner

SCALE = 7.0


def unit(count: int, dim: int = 5) -> Tensor:
    return functional.normalize(torch.randn(count, dim), dim=-1)


def mask(material: Any, **changes: Any) -> dict[str, Any]:
    values = {"initial": 1e-2, "threshold": 5e-3, "penalty": 1e-4, "gradient_dropout": 1.0} | changes
    return {"kind": "mask", "target_modules": material.target_modules, **values}


def slow_divergence(tuned: Tensor, frozen: Tensor, others: Tensor) -> float:
    total = 0.0
    for mine, before in zip(tuned, frozen, strict=True):
        p, q = ([math.exp(SCALE * float(row @ other)) for other in others] for row in (before, mine))
        p, q = ([value / sum(side) for value in side] for side in (p, q))
        total += sum(expected * math.log(expected / found) for expected, found in zip(p, q, strict=True))
    return total / len(tuned)


@pytest.mark.parametrize("there", [[0, 1, 2, 3], [1, 3]])
def test_divergence_from_general_knowledge(there: list[int]) -> None:
    torch.manual_seed(0)
    tuned = Embeddings(*(unit(4) for _ in range(4)))
    present = None if len(there) == 4 else Present(*(torch.tensor([row in there for row in range(4)]),) * 3)
    frozen = References(*(unit(4) for _ in range(6)), present=present)
    text, image = frozen.safe_text[there], frozen.safe_image[there]
    expected = (
        slow_divergence(tuned.safe_text[there], text, image),
        slow_divergence(tuned.safe_image[there], image, text),
    )
    found = gradient_dropout.divergence(tuned, frozen, SCALE)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    same = Embeddings(frozen.safe_text, frozen.unsafe_text, frozen.safe_image, frozen.unsafe_image)
    assert gradient_dropout.divergence(same, frozen, SCALE).item() == pytest.approx(0, abs=1e-6)


def test_no_safe_images_are_no_divergence() -> None:
    tuned = Embeddings(*(unit(2).requires_grad_() for _ in range(4)))
    nothing = Present(*(torch.zeros(2, dtype=torch.bool),) * 3)
    found = gradient_dropout.divergence(tuned, References(*(unit(2) for _ in range(6)), present=nothing), SCALE)
    found.backward()
    assert found.item() == 0


@pytest.mark.parametrize(
    ("gradient", "general", "probability"),
    [(2.0, 1.0, 1.0), (-2.0, -1.0, 1.0), (1.0, -1.0, 0.5), (1.0, -3.0, 0.25), (-3.0, 1.0, 0.75), (1.0, 0.0, 1.0)],
)
def test_what_contradicts_is_kept_as_often_as_the_formula_says(
    gradient: float, general: float, probability: float
) -> None:
    """By hand: P = (1 + sign(g) (g + b) / (|g| + |b|)) / 2."""
    draws = (torch.arange(1000) + 0.5) / 1000
    found = gradient_dropout.kept(torch.full_like(draws, gradient), torch.full_like(draws, general), draws)
    assert found.double().mean().item() == pytest.approx(probability, abs=1e-3)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_gradients_lose_what_is_dropped(strength: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, requires_grad=True)
    settings = {"kind": "mask", "target_modules": "x", "initial": 1, "threshold": 0, "penalty": 0.01}
    regularity = gradient_dropout.GradientDropout(
        [weight], MaskSettings.model_validate({**settings, "gradient_dropout": strength})
    )
    general, gradient = torch.randn(400), torch.randn(400)
    for _ in range(2):  # the second step knows nothing of the first
        regularity.start()
        for share in (0.25, 0.75):
            regularity.add(share * (general * weight).sum())
        weight.grad = gradient.clone()
        regularity.apply(Processes())
    whole = gradient + 0.01 * weight.detach() / weight.detach().norm()
    ratio = weight.grad / whole
    dropped = (ratio - 1).abs() > 1e-4
    assert dropped.any() == (strength > 0)
    torch.testing.assert_close(ratio[dropped], torch.full_like(ratio[dropped], 1 - strength), atol=1e-4, rtol=0)
    assert not dropped[whole.sign() == general.sign()].any()
    opposed = whole.sign() != general.sign()
    expected = (general.abs() / (whole.abs() + general.abs()))[opposed].mean().item()
    if strength:
        assert dropped[opposed].double().mean().item() == pytest.approx(expected, abs=0.1)


def tuner_of(material: Any) -> tuple[Tuner, inputs.Split, References]:
    """A model of which a fifth is switched off, so that there is something to diverge."""
    settings = material.settings(tuner=mask(material), accumulation=1, precision="fp32", batch_size=8)
    clip = models.load(material.base_model)
    tuner = Tuner(clip, tuners.attach(clip, settings), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for scores in tuner.weights.values():
            scores[torch.rand(scores.shape, generator=generator) < 0.2] = 0
    split = inputs.read_split(material.train, clip)
    targets = inputs.read_targets(settings.method, material.train, material.neighbours)
    return tuner, split, inputs.read_frozen(material.embeddings, targets, split.images)


def test_a_step_collects_the_gradient_of_the_divergence(material: Any) -> None:
    rows = torch.arange(8)
    tuner, split, frozen = tuner_of(material)
    embedded = tuner.embed(split, rows, next(iter(split.pictures.batches([rows]))))
    gradient_dropout.divergence(embedded, frozen.select(rows, "cpu"), tuner.logit_scale).backward()
    expected = {name: scores.grad for name, scores in tuner.weights.items()}
    tuner, split, frozen = tuner_of(material)
    list(tuner.steps(rows, split, frozen, "step"))
    assert tuner.regularity is not None
    for (name, gradient), holder in zip(expected.items(), tuner.regularity.general, strict=True):
        assert gradient is not None and holder.grad is not None, name
        torch.testing.assert_close(holder.grad, gradient, atol=1e-7, rtol=1e-3)
        assert gradient.abs().max() > 1e-5, "nothing diverges"


def test_two_processes_drop_what_one_does(vit_material: Any, group: Callable[..., Any], tmp_path: Path) -> None:
    """In the second step: before the first, the model is the frozen one, and nothing can contradict."""
    near = {"initial": 5.1e-3, "threshold": 5e-3}  # so that the first step switches much off
    changes = {"precision": "fp32", "batch_size": 7, "epochs": 1, "curriculum": "none", "learning_rate": 1e-3}
    commands = group(2, vit_material, "two", changes | {"tuner": mask(vit_material, **near)})
    for name, strength in (("one", 1.0), ("undropped", 0.0)):
        tuner = mask(vit_material, **near, gradient_dropout=strength)
        settings = vit_material.settings(**changes, tuner=tuner)
        train(settings, 0, **vit_material.files(), output=tmp_path / name, state=tmp_path / f"{name}.state")
    assert [command.wait() for command in commands] == [0, 0], commands[0].text
    norms = {
        name: pd.read_csv(tmp_path / name / "steps.csv")["gradient_norm"].tolist()
        for name in ("one", "two", "undropped")
    }
    assert norms["one"][0] == pytest.approx(norms["undropped"][0], rel=1e-3)
    assert norms["one"][1] < 0.98 * norms["undropped"][1], "dropping changes too little to test anything"
    assert norms["two"] == pytest.approx(norms["one"], rel=5e-3)


def test_a_training_ends_in_a_model_with_weights_switched_off(material: Any, tmp_path: Path) -> None:
    settings = material.settings(tuner=mask(material), learning_rate=2e-3)
    train(settings, 0, **material.files(), output=tmp_path / "run", state=tmp_path / "state")
    found, base = (models.load(folder).model.state_dict() for folder in (tmp_path / "run", material.base_model))
    changed = {name for name, weight in found.items() if not torch.equal(weight, base[name])}
    assert changed
    for name in changed:
        assert ((found[name] == base[name]) | (found[name] == 0)).all(), name
    facts = io.read_json(tmp_path / "run/adapter/adapter_config.json")
    zeros = sum(int(((found[name] == 0) & (base[name] != 0)).sum()) for name in changed)
    assert zeros <= facts["masked_weights"] - facts["kept_weights"] <= zeros + facts["masked_weights"] // 10
    loaded = masks.load(models.load(material.base_model), tmp_path / "run/adapter").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in found.items())


def test_an_interrupted_training_ends_as_an_unbroken_one(
    vit_material: Any, training: Callable[..., Any], same_run: Callable[[Path, Path], bool], tmp_path: Path
) -> None:
    """The draws of gradient dropout go on where they were."""
    changes = {"tuner": mask(vit_material), "learning_rate": 2e-3}
    assert training(vit_material, "whole", changes).wait() == 0
    broken = training(vit_material, "broken", changes, signal_after_step=[5, signal.SIGTERM])
    assert broken.wait() == 128 + signal.SIGTERM, broken.text
    gone_on = training(vit_material, "broken", changes)
    assert gone_on.wait() == 0, gone_on.text
    assert "going on from" in gone_on.text
    assert same_run(tmp_path / "whole", tmp_path / "broken")
