"""The training loop: it learns, repeats itself, goes on after interruptions, and leaves the reference alone."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from saferclip import adapters, io, models, similarity
from saferclip.mining import embedding
from saferclip.training import inputs, losses, train
from saferclip.training.train import DivergenceError, Tuner
from saferclip.training.tuner import CLOCK

from .results import numbers, same_weights

Run = Callable[..., Path]
COLUMNS = ["step", "epoch", "learning_rate", "loss", *losses.TERMS, "gradient_norm", *CLOCK]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train into a new folder and return it."""

    def start(material: Any, name: str, seed: int = 0, state: str | None = None, **changes: Any) -> Path:
        output = tmp_path / name
        train.train(
            material.settings(**changes),
            seed,
            output=output,
            state=tmp_path / "state" / (state or name),
            **material.files(),
        )
        return output

    return start


def tuner_of(material: Any, **changes: Any) -> tuple[Tuner, inputs.Split, losses.References]:
    """A fresh model with seeded adapters, the training split, and its frozen embeddings."""
    settings = material.settings(**changes)
    torch.manual_seed(0)
    clip = models.load(material.base_model)
    tuner = Tuner(clip, adapters.attach(clip, settings.optimisation.lora), settings)
    targets = inputs.read_targets(settings.method, material.train, material.neighbours)
    quadruples = inputs.read_split(material.train, clip)
    return tuner, quadruples, inputs.read_frozen(material.embeddings, targets, quadruples.images)


def test_logit_scale_is_the_base_models_own_or_the_number_given(vit_material: Any) -> None:
    own = load_file(vit_material.base_model / models.WEIGHTS)["logit_scale"].exp().item()
    contrasts = {}
    for scale in ("base-model", own, 2 * own):
        tuner, quadruples, frozen = tuner_of(vit_material, logit_scale=scale, precision="fp32")
        contrasts[scale] = next(tuner.steps(torch.arange(4), quadruples, frozen, ""))["preservation_cross_text"]
    assert contrasts["base-model"] == contrasts[own] != contrasts[2 * own]


def test_run_writes_all_results(material: Any, run: Run, tmp_path: Path) -> None:
    output = run(material, "run")
    assert {path.name for path in output.iterdir()} == {
        "adapter",
        models.ARCHITECTURE,
        models.WEIGHTS,
        "steps.csv",
        "epochs.csv",
        "record.json",
    }
    assert not (tmp_path / "state" / "run").exists()
    steps, epochs = pd.read_csv(output / "steps.csv"), pd.read_csv(output / "epochs.csv")
    # 13 quadruples: 5 easy, 9 with the medium ones, in batches of 4.
    assert list(steps.columns) == COLUMNS
    assert steps.epoch.tolist() == [1] * 2 + [2] * 3 + [3] * 4
    assert steps.step.tolist() == list(range(1, 10))
    assert steps.learning_rate.tolist() == [1e-2] * 9
    assert steps.loss.tolist() == pytest.approx(steps[list(losses.TERMS)].mean(axis=1).tolist(), rel=1e-5)
    assert epochs.quadruples.tolist() == [5, 9, 13]
    for epoch, loss in zip(epochs.epoch, epochs.loss, strict=True):
        assert loss == pytest.approx(steps.loss[steps.epoch == epoch].mean())
    record = io.read_json(output / "record.json")
    assert record["provenance"]["seed"] == 0
    assert record["quadruples"] == 27
    assert record["validation"] == pytest.approx(epochs.iloc[-1].to_dict())
    assert record["inputs_sha256"].keys() == material.files().keys()


def test_merged_model_equals_base_model_with_adapter(material: Any, run: Run) -> None:
    output = run(material, "run")
    merged, adapted, base = models.load(output), models.load(material.base_model), models.load(material.base_model)
    adapters.load(adapted, output / "adapter")
    images = [io.decode_image(cell) for cell in io.read_table(material.validation)["unsafe_image"].to_pylist()]
    for encode in (
        lambda clip: models.encode_images(clip, images, 4),
        lambda clip: models.encode_texts(clip, ["a red cat", "two pistols"], 4),
    ):
        torch.testing.assert_close(encode(merged), encode(adapted), atol=1e-5, rtol=0)
        assert (encode(merged) - encode(base)).abs().max() > 1e-3, "training changed nothing"


@pytest.mark.parametrize(("cross_modal", "targets"), [("relative", "nearest"), ("infonce", "paired")])
def test_training_lowers_the_loss(vit_material: Any, run: Run, cross_modal: str, targets: str) -> None:
    output = run(vit_material, "run", cross_modal=cross_modal, targets=targets, curriculum="none", epochs=8)
    loss = pd.read_csv(output / "epochs.csv").loss
    assert loss.iloc[-1] < 0.95 * loss.iloc[0]


RULES = [
    {"rule": "random", "seed": 1},
    {"rule": "image"},
    {"rule": "both", "neighbours": 2},
    {"rule": "text", "pool": 0.5, "seed": 1},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rule"])
def test_training_moves_unsafe_captions_towards_targets_of_any_rule(
    vit_material: Any, with_targets: Any, run: Run, rule: dict[str, Any]
) -> None:
    material = with_targets(vit_material, rule)
    output = run(material, "run", targets=rule, curriculum="reversed", epochs=8)
    targets = inputs.read_targets(material.settings(targets=rule).method, material.train, material.neighbours)
    target = targets.of(io.read_tensors(material.embeddings)["train.safe_caption"])
    captions = io.read_table(material.train)["unsafe_caption"].to_pylist()
    before, after = (models.encode_texts(models.load(folder), captions, 8) for folder in (material.base_model, output))
    assert ((after - before) * target).sum(dim=1).mean() > 0.01
    assert io.read_json(output / "record.json")["provenance"]["settings"]["method"]["targets"]["rule"] == rule["rule"]
    # The hard and the medium third first: 4, then 8 of 13.
    assert pd.read_csv(output / "epochs.csv").quadruples.tolist() == [4, 8, *[13] * 6]


def test_frozen_reference_is_bit_identical_after_training(material: Any) -> None:
    """Embeddings of the base model, of a fresh copy, and of the tuned one with its adapters off."""
    before = embedding.embed_table(models.load(material.base_model), material.train, 8)
    tuner, quadruples, frozen = tuner_of(material, learning_rate=0.1)
    list(tuner.steps(torch.arange(len(quadruples)), quadruples, frozen, "epoch"))
    tuner.tuned.eval()
    after = embedding.embed_table(tuner.clip, material.train, 8)
    with tuner.tuned.disable_adapter():
        off = embedding.embed_table(tuner.clip, material.train, 8)
    fresh = embedding.embed_table(models.load(material.base_model), material.train, 8)
    table = io.read_tensors(material.embeddings)
    for column, expected in before.items():
        assert torch.equal(fresh[column], expected)
        assert torch.equal(off[column], expected)
        assert torch.equal(table[f"train.{column}"], expected)
        assert not torch.equal(after[column], expected), "training changed nothing"


def test_gradient_reaches_adapters_only(material: Any) -> None:
    tuner, quadruples, frozen = tuner_of(material)
    steps = tuner.steps(torch.arange(8), quadruples, frozen, "epoch")
    next(steps)
    next(steps)  # the adapters' second matrices start at zero, so the first ones get a gradient from step 2
    for name, parameter in tuner.tuned.named_parameters():
        if ".lora_" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


TOWERS = {  # what selects modules of one encoder alone, in the tiny ViT CLIP
    "text": r"transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
    "image": r"visual\.transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
}


@pytest.mark.parametrize("encoder", TOWERS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_encoder_without_adapters_stays_as_it_is(
    vit_material: Any, run: Run, encoder: str, accumulation: int
) -> None:
    lora = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": TOWERS[encoder], "encoders": [encoder]}
    output = run(vit_material, "run", lora=lora, accumulation=accumulation, precision="fp32")
    before, after = (load_file(folder / models.WEIGHTS) for folder in (vit_material.base_model, output))
    changed = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert changed
    assert {"image" if name.startswith("visual.") else "text" for name in changed} == {encoder}


def test_terms_without_weight_do_not_count(vit_material: Any, run: Run) -> None:
    """Without cross-modal redirection, whichever its loss is called: the same steps."""
    weights = {name: float(not name.startswith("redirection_cross")) for name in losses.TERMS}
    relative, infonce = (run(vit_material, kind, cross_modal=kind, weights=weights) for kind in ("relative", "infonce"))
    assert same_weights(relative, infonce)
    steps = pd.read_csv(relative / "steps.csv")
    terms = [name for name, weight in weights.items() if weight]
    assert steps.loss.tolist() == pytest.approx(steps[terms].mean(axis=1).tolist(), rel=1e-5)


def test_same_seed_gives_same_numbers(material: Any, run: Run) -> None:
    first, second, other = (run(material, name, seed, dropout=0.3) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same_weights(first, second)
    assert numbers(first).equals(numbers(second))
    assert not same_weights(first, other)


class Interrupted(BaseException):
    """What a signal would raise."""


def interrupt_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die in the middle of an epoch."""
    take_steps = Tuner.steps

    def steps(self: Tuner, *arguments: Any) -> Any:
        for number, step in enumerate(take_steps(self, *arguments)):
            if arguments[-1].startswith(f"epoch {epoch}/") and number == 1:
                raise Interrupted
            yield step

    monkeypatch.setattr(Tuner, "steps", steps)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resumed_run_equals_an_unbroken_one(
    vit_material: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    unbroken = run(vit_material, "unbroken", dropout=0.3)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_in_epoch(epoch, patch)
        run(vit_material, "broken", dropout=0.3)
    assert not (tmp_path / "broken").exists()
    assert (tmp_path / "state" / "broken").exists() == (epoch > 1)
    torch.rand(5)  # random numbers that something else draws in between
    resumed = run(vit_material, "broken", dropout=0.3)
    assert same_weights(resumed, unbroken)
    assert numbers(resumed).equals(numbers(unbroken))
    assert pd.read_csv(resumed / "epochs.csv").equals(pd.read_csv(unbroken / "epochs.csv"))
    assert not (tmp_path / "state" / "broken").exists()


def test_resumed_run_does_not_repeat_finished_epochs(material: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_in_epoch(3, patch)
        run(material, "run")
    descriptions = []
    take_steps = Tuner.steps
    monkeypatch.setattr(Tuner, "steps", lambda *arguments: descriptions.append(arguments[-1]) or take_steps(*arguments))
    output = run(material, "run")
    assert descriptions == ["epoch 3/3"]
    assert pd.read_csv(output / "epochs.csv").epoch.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("precision", "fastest"), itertools.product(("bf16", "fp32"), (torch.bfloat16, torch.float32)))
def test_a_processor_without_bf16_is_warned_about(
    vit_material: Any,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    fastest: torch.dtype,
) -> None:
    monkeypatch.setattr(similarity, "fastest", lambda: fastest)
    with caplog.at_level(logging.WARNING, logger="saferclip"):
        run(vit_material, "run", epochs=1, precision=precision)
    warned = "this processor has no instructions" in caplog.text
    assert warned == (precision == "bf16" and fastest == torch.float32)


@pytest.mark.parametrize("change", ["settings", "seed", "inputs", "damage"])
def test_state_of_another_run_is_ignored(
    vit_material: Any,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_in_epoch(2, patch)
        run(vit_material, "run")
    changes: dict[str, Any] = {"settings": {"learning_rate": 2e-2}, "seed": {"seed": 5}}.get(change, {})
    if change == "inputs":
        rows = io.read_table(vit_material.neighbours).to_pylist()
        rows[0]["difficulty"], rows[1]["difficulty"] = rows[1]["difficulty"], rows[0]["difficulty"]
        io.write_table(vit_material.neighbours, rows)
    if change == "damage":
        (tmp_path / "state" / "run" / "checkpoint.pt").write_bytes(b"half a file")
    with caplog.at_level(logging.WARNING, logger="saferclip"):
        started_over = run(vit_material, "run", **changes)
    assert "cannot be read" in caplog.text if change == "damage" else "other settings or inputs" in caplog.text
    assert same_weights(started_over, run(vit_material, "fresh", **changes))


def test_diverging_run_says_so_and_writes_nothing(vit_material: Any, run: Run, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError) as caught:
        run(vit_material, "run", learning_rate=1e30, max_gradient_norm=1e30)
    message = str(caught.value)
    assert message.startswith("training diverged at step 2 (epoch 1): loss ")
    assert "nan" in message
    for name in (*losses.TERMS, "learning_rate", "max_gradient_norm"):
        assert name in message
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"material", "state"}] == []


def test_a_run_that_diverges_in_the_last_step_of_an_epoch_says_so_too(vit_material: Any, run: Run) -> None:
    """Its loss was still finite; what the model embeds by then is not."""
    with pytest.raises(DivergenceError, match="diverged in epoch 1: embeddings of the validation split are not finite"):
        run(vit_material, "run", batch_size=100, learning_rate=1e30)


PER_EXAMPLE = {
    name: float(not name.startswith("preservation_cross")) for name in losses.TERMS
}  # with cross_modal 'relative', all but these are means over examples


@pytest.mark.parametrize("accumulation", [2, 3, 4])
def test_micro_batches_equal_one_large_batch(material: Any, accumulation: int) -> None:
    """Also where they are of different sizes: 7 rows as 4 + 3, 3 + 3 + 1 or 2 + 2 + 2 + 1."""
    found = []
    for parts in (1, accumulation):
        tuner, quadruples, frozen = tuner_of(
            material, batch_size=7, accumulation=parts, precision="fp32", weights=PER_EXAMPLE, max_gradient_norm=1e9
        )
        for name, weight in tuner.weights.items():
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        step = next(tuner.steps(torch.arange(7), quadruples, frozen, "epoch"))
        found.append((step, torch.cat([weight.grad.flatten() for weight in tuner.weights.values()])))
    (step, gradient), (split_step, split_gradient) = found
    assert (split_gradient - gradient).norm() < 1e-4 * gradient.norm()
    for name, weight in PER_EXAMPLE.items():
        if weight:
            assert split_step[name] == pytest.approx(step[name], rel=1e-5, abs=1e-6)  # cosines are near 1
    assert split_step["loss"] == pytest.approx(step["loss"], rel=1e-5)
    assert split_step["gradient_norm"] == pytest.approx(step["gradient_norm"], rel=1e-4)


def test_long_gradients_are_clipped(vit_material: Any) -> None:
    tuner, quadruples, frozen = tuner_of(vit_material, max_gradient_norm=1e-3)
    step = next(tuner.steps(torch.arange(4), quadruples, frozen, "epoch"))
    gradients = [weight.grad.flatten() for weight in tuner.weights.values() if weight.grad is not None]
    assert step["gradient_norm"] > 1e-3
    assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_precisions_agree(material: Any) -> None:
    first = {}
    for precision in ("fp32", "bf16"):
        tuner, quadruples, frozen = tuner_of(material, precision=precision)
        first[precision] = next(tuner.steps(torch.arange(4), quadruples, frozen, "epoch"))
    assert first["bf16"]["loss"] == pytest.approx(first["fp32"]["loss"], rel=0.05)
    assert first["bf16"]["loss"] != first["fp32"]["loss"]


@torch.no_grad()
def test_rows_keep_their_place_from_table_to_embedding(material: Any) -> None:
    tuner, quadruples, _ = tuner_of(material, precision="fp32", batch_size=5)
    found = tuner.embed_all(quadruples)
    table = io.read_tensors(material.embeddings)
    for column, embedded in zip(("safe_caption", "unsafe_caption", "safe_image", "unsafe_image"), found, strict=True):
        torch.testing.assert_close(embedded, table[f"train.{column}"], atol=1e-5, rtol=0)


def test_numbers_that_are_not_finite_are_found() -> None:
    place = {"step": 7, "epoch": 2}
    train._check_finite(place, {"loss": 1.0, "gradient_norm": 2.0})
    for value in (math.nan, math.inf):
        with pytest.raises(DivergenceError, match=r"step 7 \(epoch 2\): loss 1, gradient_norm"):
            train._check_finite(place, {"loss": 1.0, "gradient_norm": value})
