"""Training into hyperbolic space: what is learnt beside the adapters, saved, resumed, and given to the folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from saferclip import adapters, heads, hyperbolic, io, metrics, models
from saferclip.config import HyperbolicSettings, HyperbolicWeights, TrainingSettings
from saferclip.heads import Head
from saferclip.training import inputs, losses, train
from saferclip.training.inputs import Images
from saferclip.training.losses import HYPERBOLIC, Embeddings
from saferclip.training.space import LOGIT_SCALES, LearntSpace
from saferclip.training.tuner import Tuner

SETTINGS = HyperbolicSettings(kind="hyperbolic", curvature=1.0, aperture_scale=1.0, largest=5.0, safe_share=0.75)
METHOD = {
    "curriculum": "none",
    "learning_rate": 1e-2,
    "geometry": SETTINGS.model_dump(),
    "weights": dict.fromkeys(HYPERBOLIC, 1.0),
}


@pytest.fixture
def hyperbolic_material(vit_material: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The material, whose settings are those of a run into hyperbolic space."""
    plain = type(vit_material).settings

    def settings(self: Any, **changes: Any) -> TrainingSettings:
        optimisation = plain(self, **changes).optimisation.model_dump()
        return TrainingSettings.model_validate({"optimisation": optimisation, "method": METHOD})

    monkeypatch.setattr(type(vit_material), "settings", settings)
    return vit_material


def run(material: Any, output: Path) -> Path:
    train.train(
        material.settings(precision="fp32"), 0, output=output, state=output.with_name("state"), **material.files()
    )
    return output


def space(**changes: Any) -> LearntSpace:
    return LearntSpace(SETTINGS.model_copy(update=changes), 16, torch.device("cpu"))


def test_a_space_starts_as_its_sources_do_and_keeps_its_ranges() -> None:
    learnt = space()
    first = {"curvature": 1.0, "text_scale": 0.25, "image_scale": 0.25, "logit_scale": LOGIT_SCALES[0]}
    assert learnt.values() == pytest.approx(first)
    for change, expected in ((100.0, (10.0, 1.0, 1.0, 100.0)), (-100.0, (0.1, 0.0, 0.0, LOGIT_SCALES[0]))):
        with torch.no_grad():
            for logarithm in learnt.weights.values():
                logarithm.add_(change)
        learnt.keep_in_range()
        assert tuple(learnt.values().values()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_lifting_is_the_exponential_map_of_scaled_outputs() -> None:
    learnt = space(curvature=2.0)
    outputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    found = learnt.lift(outputs, "text")
    torch.testing.assert_close(found, hyperbolic.exponential(outputs / 4, 2.0))
    for name in ("text_scale", "curvature"):
        gradient = torch.autograd.grad(found.sum(), learnt.weights[f"space.{name}"], retain_graph=True)[0]
        assert gradient.abs() > 1e-3


def test_limits_are_a_share_of_safe_inputs() -> None:
    learnt = space()
    lengths = torch.linspace(0.1, 2.0, 9)
    directions = torch.nn.functional.normalize(torch.randn(9, 16), dim=1)
    text = hyperbolic.exponential(lengths[:, None] * directions, 1.0)
    image = hyperbolic.exponential(0.5 * lengths[:, None] * directions, 1.0)
    embedded = Embeddings(text, 9 * text, image, 9 * image)
    everything = Images(torch.ones(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool))
    head = learnt.head(embedded, everything)
    # Of 9 evenly spread lengths, the one that three quarters do not exceed is the seventh.
    assert (head.text_limit, head.image_limit) == pytest.approx((lengths[6].item(), lengths[6].item() / 2))
    assert (head.curvature, head.text_scale, head.image_scale) == pytest.approx((1.0, 0.25, 0.25))
    some = Images(torch.arange(9) < 5, everything.unsafe)
    assert learnt.head(embedded, some).image_limit == pytest.approx(lengths[3].item() / 2)
    none = Images(torch.zeros(9, dtype=torch.bool), everything.unsafe)
    assert learnt.head(embedded, none).image_limit == learnt.head(embedded, none).text_limit
    still = space(safe_share=None).head(embedded, everything)
    assert still.text_limit is None and still.image_limit is None


def test_a_run_learns_and_its_folder_embeds_as_it_ended(hyperbolic_material: Any, tmp_path: Path) -> None:
    output = run(hyperbolic_material, tmp_path / "run")
    steps, epochs = pd.read_csv(output / "steps.csv"), pd.read_csv(output / "epochs.csv")
    assert list(steps)[3:11] == ["loss", *HYPERBOLIC]
    assert steps.loss.tolist() == pytest.approx(steps[list(HYPERBOLIC)].mean(axis=1).tolist(), rel=1e-4)
    assert epochs.loss.iloc[-1] < epochs.loss.iloc[0]
    assert (epochs[["curvature", "text_scale", "image_scale"]].diff().abs().iloc[-1] > 0).all(), "they are learnt"
    head = models.load(output).head
    assert head is not None
    last = epochs.iloc[-1]
    for name in Head.model_fields:
        assert getattr(head, name) == pytest.approx(last[name])
    # Three quarters of the way up the sorted radii of six safe captions is between the fourth and the fifth.
    clip = models.load(output)
    captions = io.read_table(hyperbolic_material.validation)["safe_caption"].to_pylist()
    embedded = models.encode_texts(clip, captions, 8)
    moved = (head.as_queries(embedded) != embedded).any(dim=1)
    assert len(captions) == 6 and moved.sum() == 2
    # Nothing but the head and the weights differs from the base model's folder.
    base = io.read_json(hyperbolic_material.base_model / models.ARCHITECTURE)
    assert io.read_json(output / models.ARCHITECTURE) == {**base, heads.SECTION: json.loads(head.model_dump_json())}


def test_validation_searches_as_the_folder_does(hyperbolic_material: Any, tmp_path: Path) -> None:
    output = run(hyperbolic_material, tmp_path / "run")
    clip = models.load(output)
    assert clip.head is not None
    table = io.read_table(hyperbolic_material.validation)
    unit = {
        **{name: models.encode_texts(clip, table[f"{name}_caption"].to_pylist(), 8) for name in ("safe", "unsafe")},
        **{
            f"{name}_image": models.encode_images(clip, map(io.decode_image, table[f"{name}_image"].to_pylist()), 8)
            for name in ("safe", "unsafe")
        },
    }
    gallery = torch.cat([unit["safe_image"], unit["unsafe_image"]])
    ranks = metrics.ranks(clip.head.as_queries(unit["unsafe"]), gallery, torch.arange(table.num_rows), 8)
    last = pd.read_csv(output / "epochs.csv").iloc[-1]
    assert last["unsafe_text_to_image/recall@1"] == pytest.approx(metrics.recall_at(ranks, 1))


def test_a_resumed_run_equals_an_unbroken_one(
    hyperbolic_material: Any, tmp_path: Path, same_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second epoch: curvature and scales go on from where they were, and so does Adam."""
    unbroken = run(hyperbolic_material, tmp_path / "unbroken")
    taken = 0
    keep = LearntSpace.keep_in_range

    def stop(self: LearntSpace) -> None:
        nonlocal taken
        taken += 1
        if taken == 6:
            raise KeyboardInterrupt
        keep(self)

    with monkeypatch.context() as patch:
        patch.setattr(LearntSpace, "keep_in_range", stop)
        with pytest.raises(KeyboardInterrupt):
            run(hyperbolic_material, tmp_path / "broken")
    assert (tmp_path / "state").exists()
    broken = run(hyperbolic_material, tmp_path / "broken")
    assert same_run(unbroken, broken)
    assert models.load(unbroken).head == models.load(broken).head


def test_several_processes_learn_the_same_numbers(
    hyperbolic_material: Any, group: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Each of them sees the curvature in the losses of all rows: its gradient must count once."""
    commands = group(2, hyperbolic_material, "two", {"precision": "fp32"})
    one = run(hyperbolic_material, tmp_path / "one")
    assert [command.wait() for command in commands] == [0, 0], commands[0].text
    first, second = (pd.read_csv(folder / "steps.csv") for folder in (one, tmp_path / "two"))
    measured = ["loss", *HYPERBOLIC, "gradient_norm"]
    pd.testing.assert_frame_equal(first[measured], second[measured], rtol=1e-4, atol=1e-5)
    heads_of = [models.load(folder).head for folder in (one, tmp_path / "two")]
    assert heads_of[0] and heads_of[1]
    assert heads_of[1].model_dump() == pytest.approx(heads_of[0].model_dump(), rel=1e-4)


@pytest.mark.usefixtures("hyperbolic_material")
def test_rows_without_images_give_numbers_and_gradients(incomplete: Any) -> None:
    material = incomplete([0, 4, 11], [1, 4, 5, 6, 12])
    settings = material.settings(precision="fp32", batch_size=5)
    torch.manual_seed(0)
    clip = models.load(material.base_model)
    tuner = Tuner(clip, adapters.attach(clip, settings.optimisation.lora), settings)
    quadruples = inputs.read_split(material.train, clip)
    targets = inputs.read_targets(settings.method, material.train, material.neighbours)
    frozen = inputs.read_frozen(material.embeddings, targets, quadruples.images)
    numbers = list(tuner.steps(torch.arange(len(quadruples)), quadruples, frozen, ""))
    assert all(math.isfinite(value) for step in numbers for value in step.values())
    assert all(weight.isfinite().all() for weight in tuner.weights.values())


def test_weights_are_of_one_kind() -> None:
    assert losses.active(HyperbolicWeights(**dict.fromkeys(HYPERBOLIC, 1.0))) == tuple(HYPERBOLIC)
    assert not set(HYPERBOLIC) & set(losses.TERMS)
