"""Base model training: what it writes, that it learns, that a killed run goes on unchanged."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from saferclip import io, models
from saferclip.base_model import training
from saferclip.config import BaseModelTrainingSettings, SceneDetail, TrainingPhase

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def phase(captions: str, samples: int, negatives: str = "random") -> TrainingPhase:
    values = {"captions": captions, "samples": samples, "learning_rate": 1e-3, "single_object_share": 0.3}
    return TrainingPhase.model_validate(values | {"negatives": negatives})


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> BaseModelTrainingSettings:
    monkeypatch.setattr(training, "POOL_SCENES", 64)
    monkeypatch.setattr(training, "VALIDATION_SCENES", 40)
    monkeypatch.setattr(training, "STEPS_PER_CHECKPOINT", 2)
    return BaseModelTrainingSettings(
        architecture=ARCHITECTURE,
        seed=1,
        batch_size=16,
        detail=SceneDetail(named_objects=2, colour=0.7, background=0.5),
        phases=(phase("objects", 80), phase("default", 64, negatives="twins")),
        weight_decay=0.1,
        precision="fp32",
    )


def test_writes_a_model_that_open_clip_loads(settings: BaseModelTrainingSettings, tmp_path: Path) -> None:
    training.train(settings, tmp_path / "model", tmp_path / "state")

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    assert model.visual.image_size in (64, (64, 64))
    assert preprocess is not None
    assert io.read_tensors(tmp_path / "model" / models.WEIGHTS)["text_projection"].dtype == torch.float16
    record = io.read_json(tmp_path / "model" / "record.json")
    assert record["provenance"]["seed"] == settings.seed
    assert not list((tmp_path / "state").glob("*.pt"))


def test_a_killed_run_ends_like_an_unbroken_one(
    settings: BaseModelTrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(settings, tmp_path / "unbroken", tmp_path / "state-1")

    steps = training._steps
    for phase_number, last_step in ((0, 2), (0, 4), (1, 2)):
        # Each attempt dies after one step more than was saved.
        def dying(*arguments: object, stop: tuple[int, int] = (phase_number, last_step)) -> object:
            for step, loss in steps(*arguments):  # type: ignore[arg-type]
                yield step, loss
                if (arguments[6], step) == stop:
                    raise KeyboardInterrupt

        monkeypatch.setattr(training, "_steps", dying)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, tmp_path / "resumed", tmp_path / "state-2")
    monkeypatch.setattr(training, "_steps", steps)
    training.train(settings, tmp_path / "resumed", tmp_path / "state-2")

    unbroken = io.read_tensors(tmp_path / "unbroken" / models.WEIGHTS)
    resumed = io.read_tensors(tmp_path / "resumed" / models.WEIGHTS)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in unbroken.items())
    assert (tmp_path / "unbroken/steps.csv").read_text() == (tmp_path / "resumed/steps.csv").read_text()


def test_state_of_other_settings_is_not_used(settings: BaseModelTrainingSettings, tmp_path: Path) -> None:
    path = tmp_path / "state" / "checkpoint.pt"
    checkpoint = training.Checkpoint(path, "other")
    model = training.CLIP(**ARCHITECTURE)
    checkpoint.save(model, training._optimizer(model, settings.phases[0], 0.1), 1, 1, [])

    assert training.Checkpoint(path, "other").restore_model(model)[:2] == (1, 1)
    assert training.Checkpoint(path, "mine").restore_model(model) == (0, 0, [])


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [training._rate(2.0, step, 1000) for step in range(1000)]

    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0 * 0.5 * (1 + 0.9510565), rel=0.05)
    assert rates[-1] < 1e-4
    assert rates[training.WARM_UP_STEPS :] == sorted(rates[training.WARM_UP_STEPS :], reverse=True)


def test_scenes_depend_on_seed_and_stream_alone() -> None:
    pools = [training.draw_pool(1, phase("full", 30), 64, 30, stream=1) for _ in range(2)]

    assert torch.equal(pools[0].images, pools[1].images)
    assert pools[0].images.shape == (30, 3, 64, 64)
    assert not torch.equal(pools[0].images, training.draw_pool(1, phase("full", 30), 64, 30, stream=2).images)


def test_twins_differ_in_colours_and_background_alone() -> None:
    pool = training.draw_pool(1, phase("default", 100, negatives="twins"), 64, 100, stream=1)

    for scene, twin in zip(pool.scenes[::2], pool.scenes[1::2], strict=True):
        assert scene.concepts == twin.concepts
        assert scene.style == twin.style
        assert scene.background != twin.background
        assert all(a.colour != b.colour for a, b in zip(scene.objects, twin.objects, strict=True))
        assert len(set(scene.objects)) == len(set(twin.objects))  # copies stay copies


def test_batches_hold_whole_pairs_of_twins() -> None:
    rows = training._rows(training.np.random.default_rng(0), scenes=100, batch_size=16)

    assert len(set(rows.tolist())) == 16
    assert all(second == first + 1 and first % 2 == 0 for first, second in rows.reshape(-1, 2).tolist())
