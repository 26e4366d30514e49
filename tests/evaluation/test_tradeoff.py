"""Trade-off curves: what is between two models, and that both ends are the evaluations of the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from torch import nn

from saferclip import curves, io, models
from saferclip.config import EvaluationSettings, TradeoffStep
from saferclip.evaluation.evaluate import evaluate
from saferclip.evaluation.scaled import ScaledModel
from saferclip.evaluation.tradeoff import tradeoff

LORA = r"transformer\.resblocks\.\d+\.mlp\.c_fc|visual\.layer1\.0\.conv2|visual\.layer2\.0\.conv1"
CPU = torch.device("cpu")


def adapted(folder: Path) -> Any:
    """The model with an adapter of rank 2 that changes something."""
    model = models.load(folder).model
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=LORA, init_lora_weights=False)
    return peft.inject_adapter_in_model(config, model)


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]


def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights with the adapter in them, by the plain model's names."""
    for layer in layers(model):
        layer.merge()
    return {
        name.replace(".base_layer", ""): rows.clone()
        for name, rows in model.state_dict().items()
        if "lora_" not in name
    }


@pytest.fixture
def tuned(tmp_path: Path, tiny_resnet_clip_folder: Path) -> Path:
    """A model folder: the tiny model with its adapter merged."""
    architecture = models.load(tiny_resnet_clip_folder).architecture
    models.save(tmp_path / "tuned", merged(adapted(tiny_resnet_clip_folder)), architecture)
    return tmp_path / "tuned"


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_a_scale_is_that_of_the_adapter(scale: float, tuned: Path, tiny_resnet_clip_folder: Path) -> None:
    between = ScaledModel(tiny_resnet_clip_folder, tuned, CPU)
    between.set(scale)
    found = between.clip.model.state_dict()
    model = adapted(tiny_resnet_clip_folder)
    assert len(layers(model)) == 3
    for layer in layers(model):
        layer.set_scale("default", scale)
    expected = merged(model)
    base = models.load(tiny_resnet_clip_folder).model.state_dict()
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows, atol=1e-6, rtol=1e-5)
        if "running" in name:
            assert torch.equal(found[name], base[name])
    assert sum(not torch.equal(found[name], base[name]) for name in base) == 3


def test_scales_0_and_1_are_the_two_models_in_any_order(tuned: Path, tiny_resnet_clip_folder: Path) -> None:
    between = ScaledModel(tiny_resnet_clip_folder, tuned, CPU)
    for scale, folder in ((1, tuned), (1.5, None), (0, tiny_resnet_clip_folder), (0.3, None), (1, tuned)):
        between.set(scale)
        if folder:
            for name, rows in models.load(folder).model.state_dict().items():
                assert torch.equal(between.clip.model.state_dict()[name], rows), name


@pytest.fixture
def step(settings: EvaluationSettings) -> TradeoffStep:
    return TradeoffStep(scales=(0.5, 1, 1.5), evaluation=settings)


@pytest.fixture
def swept(files: dict[str, Path]) -> dict[str, Path]:
    return {name: files[name] for name in ("test", "nsfw_caps", "zero_shot")}


def test_the_ends_of_a_curve_are_the_evaluations_of_both_models(
    tmp_path: Path,
    step: TradeoffStep,
    files: dict[str, Path],
    swept: dict[str, Path],
    tuned: Path,
    tiny_resnet_clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    decode = io.decode_image
    base = tiny_resnet_clip_folder
    for method, folder, scale in (("clip", base, 0), ("safer-clip", tuned, 1)):
        evaluate(step.evaluation, method, 3, folder, base, files, tmp_path / "evaluation" / method)
        monkeypatch.setattr(io, "decode_image", lambda cell: decoded.append(cell["bytes"]) or decode(cell))
        tradeoff(step, method, 3, folder, base, swept, tmp_path / "curve" / method)
        monkeypatch.setattr(io, "decode_image", decode)
        for benchmark in swept:
            expected = io.read_evaluation(tmp_path / "evaluation" / method / f"{benchmark}.json")
            found = io.read_evaluation(tmp_path / "curve" / method / f"{benchmark}.json")
            at_scale = {
                name.removeprefix(f"{scale}/"): metric
                for name, metric in found.metrics.items()
                if name.startswith(f"{scale}/")
            }
            assert at_scale == expected.metrics
            assert (found.counts, found.seed, found.method) == (expected.counts, 3, method)
        assert_outcomes(tmp_path, method, scale)
    # Two models, each picture once, whatever the number of scales.
    assert len(decoded) == 2 * (2 * 2 * 24 + 16)
    sweep = curves.Sweep.read(*(tmp_path / "curve" / method / curves.OUTCOMES for method in ("clip", "safer-clip")))
    assert sweep.scales == (0, 0.5, 1, 1.5)
    measured = curves.points([sweep], 20, 1)
    utility = [
        io.read_evaluation(tmp_path / "evaluation" / method / "zero_shot.json").metrics["mean/accuracy"].value
        for method in ("clip", "safer-clip")
    ]
    assert measured.utility[0, 0, [0, 2]] == pytest.approx(utility)


def assert_outcomes(folder: Path, method: str, scale: float) -> None:
    ranks = io.read_table(folder / "evaluation" / method / "ranks.parquet").to_pandas()
    kept = (ranks.benchmark == "zero_shot") | (
        ranks.benchmark.isin(["test", "nsfw_caps"]) & ranks.direction.str.startswith("unsafe_")
    )
    columns = ["benchmark", "direction", "query_id", "rank", "top_unsafe"]
    outcomes = io.read_table(folder / "curve" / method / curves.OUTCOMES).to_pandas()
    renamed = outcomes.rename(columns={curves.column(scale, name): name for name in ("rank", "top_unsafe")})
    pd.testing.assert_frame_equal(renamed[columns], ranks[kept][columns].reset_index(drop=True))


def test_models_of_other_architectures_have_nothing_between(
    tmp_path: Path, step: TradeoffStep, swept: dict[str, Path], tiny_clip_folder: Path, tiny_resnet_clip_folder: Path
) -> None:
    with pytest.raises(io.DataError, match=r"other weights than .*tradeoff\.methods"):
        tradeoff(step, "other", 0, tiny_clip_folder, tiny_resnet_clip_folder, swept, tmp_path / "curve")


def test_both_axes_are_needed(
    tmp_path: Path, step: TradeoffStep, swept: dict[str, Path], tiny_clip_folder: Path
) -> None:
    for given in ({"zero_shot": swept["zero_shot"]}, {"test": swept["test"]}):
        with pytest.raises(io.DataError, match="--file zero_shot="):
            tradeoff(step, "clip", 0, tiny_clip_folder, tiny_clip_folder, given, tmp_path / "curve")


def test_withheld_images_leave_a_curve(
    tmp_path: Path,
    step: TradeoffStep,
    swept: dict[str, Path],
    without: Callable[[Path, str, list[int]], None],
    tiny_clip_folder: Path,
) -> None:
    without(swept["test"], "safe_image", [0, 5])
    tradeoff(step, "clip", 0, tiny_clip_folder, tiny_clip_folder, swept, tmp_path / "curve")
    frame = io.read_table(tmp_path / "curve" / curves.OUTCOMES).to_pandas()
    counts = frame[frame.benchmark == "test"].direction.value_counts()
    assert counts.to_dict() == {"unsafe_text_to_image": 22, "unsafe_image_to_text": 24}
