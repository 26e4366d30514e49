"""Training on rows that lack images: each term on the rows that have what it compares, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from saferclip import adapters, io, models
from saferclip.config import LossWeights
from saferclip.mining import embedding
from saferclip.mining.pixels import IMAGES, split_preprocess
from saferclip.training import inputs, losses, selection, train
from saferclip.training.inputs import Images
from saferclip.training.losses import TERMS, References
from saferclip.training.train import Tuner

ROWS = 13
SAFE_GAPS, UNSAFE_GAPS = [0, 4, 11], [1, 4, 5, 6, 12]
PER_EXAMPLE = {name: 0.0 if name.startswith("preservation_cross") else 1.0 for name in TERMS}


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
    train.train(material.settings(**changes), 0, output=output, state=output.parent / "state", **material.files())
    return output


def gradient(tuner: Tuner) -> Tensor:
    return torch.cat([torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in tuner.weights.values()])


def row_by_row(tuner: Tuner, material: Any, rows: range, cross_modal: str) -> tuple[dict[str, float], Tensor]:
    """Terms and gradient of their plain mean, one quadruple and one term at a time, from the tables themselves."""
    table = io.read_table(material.train).to_pylist()
    mined = {row["unsafe_id"]: row["safe_id"] for row in io.read_table(material.neighbours).to_pylist()}
    place = {row["id"]: number for number, row in enumerate(table)}
    frozen = io.read_tensors(material.embeddings)
    model, clip = tuner.clip.model, tuner.clip
    values: dict[str, list[Tensor]] = {name: [] for name in TERMS if PER_EXAMPLE[name]}
    for number in rows:
        row, target = table[number], place[mined[table[number]["id"]]]
        text, unsafe_text = (
            models.text_features(model, clip.tokenize([row[name]]))[0] for name in ("safe_caption", "unsafe_caption")
        )
        image, unsafe_image = (
            row[name] and models.image_features(model, clip.preprocess(io.decode_image(row[name]))[None])[0]
            for name in ("safe_image", "unsafe_image")
        )
        target_image = frozen["train.safe_image"][target] if table[target]["safe_image"] else None
        target_text, own = (
            frozen["train.safe_caption"][target],
            {n: frozen[f"train.{n}"][number] for n in ("safe_caption", "unsafe_caption", "safe_image", "unsafe_image")},
        )
        values["preservation_text"].append(1 - text @ own["safe_caption"])
        values["redirection_text"].append(1 - unsafe_text @ target_text)
        if image is not None:
            values["preservation_image"].append(1 - image @ own["safe_image"])
        if unsafe_image is not None:
            margin = unsafe_image @ own["unsafe_caption"] - unsafe_image @ target_text
            values["redirection_cross_image"].append(margin.exp().add(1).log())
        if unsafe_image is not None and target_image is not None:
            values["redirection_image"].append(1 - unsafe_image @ target_image)
            margin = unsafe_text @ own["unsafe_image"] - unsafe_text @ target_image
            values["redirection_cross_text"].append(margin.exp().add(1).log())
    assert cross_modal == "relative"
    means = {name: torch.stack(parts).mean() for name, parts in values.items()}
    torch.stack(list(means.values())).mean().backward()
    return {name: value.item() for name, value in means.items()}, gradient(tuner)


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_gradients_are_means_over_the_rows_that_take_part(incomplete: Any, accumulation: int) -> None:
    """Whatever the micro-batches: some have a row for a term, some have none."""
    material = incomplete(SAFE_GAPS, UNSAFE_GAPS)
    options = {"batch_size": 10, "weights": LossWeights(**PER_EXAMPLE)}
    slow, _, _ = tuner_of(material, **options)
    terms, expected = row_by_row(slow, material, range(10), "relative")
    tuner, quadruples, frozen = tuner_of(material, accumulation=accumulation, **options)
    step = next(tuner.steps(torch.arange(10), quadruples, frozen, "epoch"))
    assert (gradient(tuner) - expected).norm() < 1e-4 * expected.norm()
    for name, value in terms.items():
        assert step[name] == pytest.approx(value, rel=1e-4), name
    assert step["loss"] == pytest.approx(np.mean(list(terms.values())), rel=1e-4)


def test_a_batch_without_images_leaves_the_image_encoder_alone(incomplete: Any) -> None:
    material = incomplete([0, 1, 2, 3], [0, 1, 2, 3])
    tuner, quadruples, frozen = tuner_of(material)
    step = next(tuner.steps(torch.arange(4), quadruples, frozen, "epoch"))
    measured = {"preservation_text", "redirection_text"}
    assert set(step) & set(TERMS) == measured, "terms without a row have no number"
    assert step["loss"] == pytest.approx(sum(step[name] for name in measured) / 8, rel=1e-5)
    for name, weight in tuner.weights.items():
        assert (weight.grad is None) == (".visual." in name), name


def test_masks_do_not_change_what_complete_batches_do(vit_material: Any) -> None:
    """Bit by bit: steps with a mask of ones, against steps without one."""
    found = []
    for masked in (False, True):
        tuner, quadruples, frozen = tuner_of(vit_material, accumulation=2)
        if masked:
            everywhere = torch.ones(ROWS, dtype=torch.bool)
            frozen = frozen._replace(present=losses.Present(everywhere, everywhere, everywhere))
        steps = list(tuner.steps(torch.arange(ROWS), quadruples, frozen, "epoch"))
        found.append((steps, [weight.detach().clone() for weight in tuner.weights.values()]))
    (plain, weights), (steps, masked_weights) = found
    assert all(one[name] == other[name] for one, other in zip(plain, steps, strict=True) for name in ("loss", *TERMS))
    assert all(torch.equal(one, other) for one, other in zip(weights, masked_weights, strict=True))


def test_complete_steps_equal_the_plain_formula_bit_by_bit(vit_material: Any) -> None:
    """As before rows could lack images: share times the weighted mean of the terms, each over the whole micro-batch."""
    tuner, quadruples, frozen = tuner_of(vit_material, accumulation=2, batch_size=5)
    step = next(tuner.steps(torch.arange(5), quadruples, frozen, "epoch"))
    found = gradient(tuner)
    plain, quadruples, frozen = tuner_of(vit_material, accumulation=2, batch_size=5)
    adapters.set_training_mode(plain.tuned)
    sums = torch.zeros(9)
    plan = [torch.tensor([0, 1, 2]), torch.tensor([3, 4])]
    for rows, pixels in zip(plan, quadruples.pictures.batches(plan), strict=True):
        tuned = plain.embed(quadruples, rows, pixels)
        terms = losses.terms(tuned, frozen.select(rows, "cpu"), "relative", plain.logit_scale)
        loss = losses.total(terms, plain.settings.method.weights)
        (len(rows) / 5 * loss).backward()
        sums += len(rows) / 5 * torch.stack([loss, *terms.values()]).detach()
    assert torch.equal(gradient(plain), found)
    assert sums.tolist() == [step[name] for name in ("loss", *TERMS)]


@pytest.mark.parametrize("cross_modal", ["relative", "infonce"])
def test_record_counts_the_rows_of_each_term(
    incomplete: Any, tmp_path: Path, cross_modal: str, caplog: pytest.LogCaptureFixture
) -> None:
    material = incomplete(SAFE_GAPS, UNSAFE_GAPS)
    with caplog.at_level(logging.WARNING):
        output = run(material, tmp_path / "run", cross_modal=cross_modal, curriculum="none", epochs=2)
    record = io.read_json(output / "record.json")
    mined = {row["unsafe_id"]: row["safe_id"] for row in io.read_table(material.neighbours).to_pylist()}
    safe, unsafe = ({f"train-{row:05d}" for row in range(ROWS) if row not in gaps} for gaps in (SAFE_GAPS, UNSAFE_GAPS))
    target = {name for name, found in mined.items() if found in safe}
    assert 0 < len(target & unsafe) < len(unsafe), "some nearest targets lack their image"
    expected = {
        "preservation_text": ROWS,
        "preservation_image": len(safe),
        "preservation_cross_text": len(safe),
        "preservation_cross_image": len(safe),
        "redirection_text": ROWS,
        "redirection_image": len(target & unsafe),
        "redirection_cross_text": len(target & unsafe if cross_modal == "relative" else target),
        "redirection_cross_image": len(unsafe),
    }
    assert record["rows"] == {
        name: {"used": 2 * count, "left_out": 2 * (ROWS - count)} for name, count in expected.items()
    }
    assert record["validation_rows"] == {
        "text_to_image": 4,
        "image_to_text": 4,
        "unsafe_text_to_image": 2,
        "unsafe_image_to_text": 3,
    }
    assert f"redirection_cross_image: {2 * len(unsafe)} of 26 rows take part" in caplog.text
    assert "validation: rows that take part, of 6: text_to_image 4" in caplog.text


def test_captions_alone_train_the_text_encoder_alone(incomplete: Any, tmp_path: Path) -> None:
    material = incomplete(list(range(ROWS)), list(range(ROWS)))
    output = run(material, tmp_path / "run", curriculum="none", targets="paired", learning_rate=1e-3, epochs=5)
    before, after = (io.read_tensors(path / models.WEIGHTS) for path in (material.base_model, output))
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed and not any(name.startswith("visual.") for name in changed)
    steps, epochs = pd.read_csv(output / "steps.csv"), pd.read_csv(output / "epochs.csv")
    assert set(steps) & set(TERMS) == {"preservation_text", "redirection_text"}
    assert list(epochs) == ["epoch", "quadruples", "loss"]
    assert epochs.loss.iloc[-1] < epochs.loss.iloc[0]
    record = io.read_json(output / "record.json")
    assert record["validation_rows"] == dict.fromkeys(record["validation_rows"], 0)
    with pytest.raises(io.DataError, match="no selection score: the validation split has no images"):
        selection.final_score(output / "epochs.csv")


def test_resumed_run_on_captions_alone_goes_on(
    incomplete: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's state then knows nothing of the image encoder's adapters."""
    material = incomplete(list(range(ROWS)), list(range(ROWS)))
    unbroken = run(material, tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(material, tmp_path / "broken")
    resumed = run(material, tmp_path / "broken")
    one, other = (io.read_tensors(path / models.WEIGHTS) for path in (unbroken, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pixels_of_a_file_are_those_of_the_table(incomplete: Any, stored: Any) -> None:
    material = incomplete(SAFE_GAPS, UNSAFE_GAPS)
    clip = models.load(material.base_model)
    memory = inputs.read_split(material.train, clip).pictures
    file = inputs.read_split(material.train, clip, stored(material)).pictures
    plan = [torch.tensor([5, 0, 3]), torch.tensor([4]), torch.tensor([12, 11, 1, 2])]
    to_pixels, _ = split_preprocess(clip.preprocess)
    table = io.read_table(material.train).to_pylist()
    for rows, first, second in zip(plan, memory.batches(plan), file.batches(plan), strict=True):
        cells = [table[row][column] for column in ("safe_image", "unsafe_image") for row in rows.tolist()]
        expected = [to_pixels(io.decode_image(cell)).permute(2, 0, 1) for cell in cells if cell]
        assert first.shape == second.shape == (len(expected), 3, 32, 32)
        assert torch.equal(first, second)
        assert not expected or torch.equal(first, torch.stack(expected))


def test_embeddings_of_other_images_are_refused(incomplete: Any) -> None:
    material = incomplete(SAFE_GAPS, UNSAFE_GAPS)
    targets = inputs.read_targets(material.settings().method, material.train, material.neighbours)
    images = Images(*(embedding.present(material.train, column) for column in IMAGES))
    images.unsafe[2] = False
    with pytest.raises(io.DataError, match=r"other images are there in train\.unsafe_image than in the table; embed"):
        inputs.read_frozen(material.embeddings, targets, images)
