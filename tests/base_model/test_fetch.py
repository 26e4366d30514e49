"""Fetching a model: every kind of source and format, and what is said when something is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from saferclip import io, models
from saferclip.base_model import activation, formats, hub
from saferclip.base_model.activation import ActivationError
from saferclip.base_model.fetch import fetch
from saferclip.config import BaseModelSettings, ConfigError, parse
from saferclip.heads import SECTION, Head

from .conftest import MODEL_CFG, PREPROCESSING

Fetch = Callable[..., models.Clip]


@pytest.fixture
def get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """A function (source, architecture=None, **downloads) -> the model that was fetched, loaded."""
    monkeypatch.setattr(activation, "PAIRS", 16)  # random weights: what the probe finds is tested elsewhere

    def run(source: str, architecture: str | None = None, **downloads: Path) -> models.Clip:
        settings = BaseModelSettings(source=source, architecture=architecture)
        fetch(settings, downloads, tmp_path / "downloads", "base_model", tmp_path / "model")
        return models.load(tmp_path / "model")

    return run


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures of the tests' size on open_clip's list, 'ViT-tiny' and the one with QuickGELU."""
    configs = {"ViT-tiny": MODEL_CFG | {"quick_gelu": False}, "ViT-tiny-quickgelu": MODEL_CFG}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | configs)
    entry = {"hf_hub": "lab/vit_tiny.openai/", "quick_gelu": True, **PREPROCESSING}
    lists = {"ViT-tiny": {"openai": entry}, "ViT-tiny-quickgelu": {"openai": entry}}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", open_clip.pretrained._PRETRAINED | lists)


def assert_equal(clip: models.Clip, state: dict[str, Tensor]) -> None:
    loaded = clip.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_local_folder_is_copied_unchanged(get: Fetch, tiny_clip_folder: Path, tmp_path: Path) -> None:
    get(f"local-dir:{tiny_clip_folder}")
    for name in (models.WEIGHTS, models.ARCHITECTURE):
        assert (tmp_path / "model" / name).read_bytes() == (tiny_clip_folder / name).read_bytes()


def test_a_model_in_hyperbolic_space_may_be_compared_with_but_not_started_from(
    get: Fetch, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_clip_folder, tmp_path / "hyperbolic")
    path = tmp_path / "hyperbolic" / models.ARCHITECTURE
    head = Head(curvature=1.0, text_scale=0.3, image_scale=0.3, largest=5.0)
    path.write_text(json.dumps({**io.read_json(path), SECTION: head.model_dump(exclude_none=True)}))
    source = f"local-dir:{tmp_path / 'hyperbolic'}"
    with pytest.raises(ConfigError, match="base_model: source: embeds into hyperbolic space"):
        get(source)
    settings = BaseModelSettings(source=source, architecture=None)
    fetch(settings, {}, tmp_path / "downloads", "methods.other.weights", tmp_path / "published")
    assert models.load(tmp_path / "published").head == head


def test_a_resnet_is_fetched_too(get: Fetch, tiny_resnet_clip_folder: Path) -> None:
    assert get(f"local-dir:{tiny_resnet_clip_folder}").architecture["model_cfg"]["vision_cfg"]["layers"] == [1, 1, 1, 1]


def test_a_folder_of_transformers_is_converted(get: Fetch, transformers_folder: Path, state: dict[str, Tensor]) -> None:
    clip = get(f"local-dir:{transformers_folder}")
    assert_equal(clip, state)
    assert clip.architecture["model_cfg"]["quick_gelu"] is True
    assert clip.architecture["preprocess_cfg"] == PREPROCESSING


def test_several_files_of_weights_are_put_together(
    get: Fetch, transformers_folder: Path, state: dict[str, Tensor]
) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(transformers_folder / "model.safetensors")
    (transformers_folder / "model.safetensors").unlink()
    names = sorted(whole)
    for part, some in enumerate((names[:9], names[9:]), start=1):
        path = transformers_folder / f"model-0000{part}-of-00002.safetensors"
        save_file({name: whole[name] for name in some}, path)
    assert_equal(get(f"local-dir:{transformers_folder}"), state)


def test_a_download_is_found_where_it_was_put(get: Fetch, open_clip_folder: Path, state: dict[str, Tensor]) -> None:
    assert_equal(get("download:published", published=open_clip_folder), state)
    with pytest.raises(ConfigError, match="base_model: source: where is 'published'"):
        get("download:published")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
@pytest.mark.usefixtures("small_architecture")
def test_weights_alone_need_an_architecture(
    get: Fetch, weights_file: Callable[[str], Path], name: str, state: dict[str, Tensor]
) -> None:
    assert_equal(get(f"file:{weights_file(name)}", "ViT-tiny-quickgelu"), state)


@pytest.mark.usefixtures("small_architecture")
def test_a_checkpoint_of_open_clips_training_is_read(get: Fetch, tmp_path: Path, state: dict[str, Tensor]) -> None:
    weights = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "epoch_3.pt")
    assert_equal(get(f"file:{tmp_path / 'epoch_3.pt'}", "ViT-tiny-quickgelu"), state)


@pytest.mark.usefixtures("small_architecture")
def test_weights_alone_may_have_the_names_of_transformers(
    get: Fetch, transformers_folder: Path, state: dict[str, Tensor]
) -> None:
    assert_equal(get(f"file:{transformers_folder / 'model.safetensors'}", "ViT-tiny-quickgelu"), state)


@pytest.mark.usefixtures("small_architecture")
def test_half_precision_is_loaded_exactly(get: Fetch, tmp_path: Path, state: dict[str, Tensor]) -> None:
    halved = {name: tensor.half() for name, tensor in state.items()}
    torch.save(halved, tmp_path / "half.pt")
    assert_equal(
        get(f"file:{tmp_path / 'half.pt'}", "ViT-tiny-quickgelu"), {name: half.float() for name, half in halved.items()}
    )


@pytest.mark.parametrize("form", ["open_clip_folder", "transformers_folder"])
def test_a_repository_of_the_hub_is_fetched(
    get: Fetch, hub: Any, form: str, request: pytest.FixtureRequest, state: dict[str, Tensor], tmp_path: Path
) -> None:
    repository = hub.root / "models/lab/CLIP-tiny"
    shutil.copytree(request.getfixturevalue(form), repository)
    (repository / "flax_model.msgpack").write_bytes(b"of no use")
    assert_equal(get("hf-hub:lab/CLIP-tiny"), state)
    assert not list((tmp_path / "downloads").rglob("*.msgpack"))


def test_a_revision_is_a_commit(get: Fetch, hub: Any, open_clip_folder: Path) -> None:
    shutil.copytree(open_clip_folder, hub.root / "models/lab/CLIP-tiny")
    for wrong in ("lab/CLIP-tiny@v1", "CLIP-tiny"):
        with pytest.raises(ConfigError, match=f"base_model: source: '{wrong}' .*the full hash of a commit"):
            get(f"hf-hub:{wrong}")
    with pytest.raises(io.DataError, match="has no revision"):
        get(f"hf-hub:lab/CLIP-tiny@{'0' * 40}")


@pytest.mark.usefixtures("small_architecture")
def test_a_pretrained_model_of_open_clip_comes_from_the_hub(
    get: Fetch, hub: Any, open_clip_folder: Path, state: dict[str, Tensor]
) -> None:
    """As in timm's repositories: weights of the image encoder alone lie beside, with a configuration of timm's."""
    repository = hub.root / "models/lab/vit_tiny.openai"
    shutil.copytree(open_clip_folder, repository)
    (repository / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16"}))
    (repository / "model.safetensors").write_bytes(b"of timm")
    clip = get("open_clip:ViT-tiny-quickgelu/openai")
    assert_equal(clip, state)
    assert clip.architecture["preprocess_cfg"] == PREPROCESSING


@pytest.mark.usefixtures("small_architecture")
def test_a_wrong_activation_is_refused_before_anything_is_fetched(get: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch_model", lambda *_: pytest.fail("something is fetched"))
    message = (
        r"base_model: .*QuickGELU, says open_clip's list of 'openai'.*write 'source: open_clip:ViT-tiny-quickgelu/op"
    )
    with pytest.raises(ActivationError, match=message):
        get("open_clip:ViT-tiny/openai")
    with pytest.raises(ActivationError, match="write 'source: open_clip:ViT-L-14-quickgelu/openai'"):
        get("open_clip:ViT-L-14/openai")


def test_every_openai_model_of_open_clip_is_on_the_hub_and_declares_quickgelu() -> None:
    names = open_clip.list_pretrained_models_by_tag("openai")
    assert "ViT-L-14-quickgelu" in names
    for name in names:
        entry = open_clip.get_pretrained_cfg(name, "openai")
        assert entry["hf_hub"] and entry["quick_gelu"] is True


@pytest.mark.usefixtures("small_architecture")
def test_names_and_configurations_speak_of_the_activation_too(
    get: Fetch, weights_file: Callable[[str], Path], transformers_folder: Path
) -> None:
    with pytest.raises(
        ActivationError, match=r"says the name 'tiny-quickgelu.pt'.*write 'architecture: ViT-tiny-quickgelu'"
    ):
        get(f"file:{weights_file('tiny-quickgelu.pt')}", "ViT-tiny")

    wrong = {"model_cfg": MODEL_CFG | {"quick_gelu": False}, "preprocess_cfg": PREPROCESSING}
    io.write_json(transformers_folder / models.ARCHITECTURE, wrong)  # a repository with both formats, which disagree
    with pytest.raises(
        ActivationError, match=r"hidden_act: quick_gelu.*set 'quick_gelu: true' in the model_cfg of its"
    ):
        get(f"local-dir:{transformers_folder}")
    right = get(f"local-dir:{transformers_folder}", "ViT-tiny-quickgelu")  # corrects the configuration
    assert right.architecture == {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESSING}


def test_behaviour_decides_where_nothing_is_said(
    get: Fetch, open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    better = activation.Verdict(
        5.0, 1.0, activation.statistics.Interval(4, 3, 5), activation.statistics.Interval(3, 2, 4)
    )
    monkeypatch.setattr(activation, "probe", lambda _: better)
    with pytest.raises(ActivationError, match=r"loss 5\.000 with QuickGELU and 1\.000 with GELU.*'quick_gelu: false'"):
        get(f"local-dir:{open_clip_folder}")
    assert not (tmp_path / "model").exists(), "a refused model is left behind"


def test_an_unknown_kind_of_source_is_explained() -> None:
    for source in ("ftp:x", "local-dir:", "open_clip:ViT-L-14", "results/model"):
        with pytest.raises(ConfigError, match=f"source: '{source}' is not understood; write one of: dvc:<folder>, "):
            parse(BaseModelSettings, {"source": source}, "base_model")


def test_an_architecture_is_asked_for_where_it_is_needed_and_nowhere_else(
    get: Fetch, weights_file: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match="architecture: missing"):
        parse(BaseModelSettings, {"source": "file:weights.pt"}, "base_model")
    with pytest.raises(ConfigError, match="architecture: leave it out"):
        parse(BaseModelSettings, {"source": "open_clip:ViT-L-14/openai", "architecture": "ViT-L-14"}, "base_model")
    with pytest.raises(ConfigError, match=r"base_model: architecture: missing; .*weights\.pt does not say"):
        get("download:raw", raw=weights_file("weights.pt"))
    with pytest.raises(ConfigError, match=r"architecture: open_clip has no 'ViT-L-41'; .*ViT-L-14-quickgelu"):
        get(f"file:{weights_file('weights.pt')}", "ViT-L-41")


def test_tags_that_exist_are_named(get: Fetch) -> None:
    with pytest.raises(
        ConfigError, match=r"no weights 'laion2b_s32b_b82k' for ViT-B-32 .*; it has openai, .* for ViT-L-14"
    ):
        get("open_clip:ViT-B-32/laion2b_s32b_b82k")


def test_a_text_encoder_with_a_vocabulary_on_the_hub_is_refused(get: Fetch, open_clip_folder: Path) -> None:
    text = MODEL_CFG["text_cfg"] | {"hf_tokenizer_name": "timm/other"}
    io.write_json(open_clip_folder / models.ARCHITECTURE, {"model_cfg": MODEL_CFG | {"text_cfg": text}})
    with pytest.raises(ConfigError, match="captions are read by 'timm/other'; choose a model with CLIP's own"):
        get(f"local-dir:{open_clip_folder}")


class Harmful:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a file was run",))


@pytest.mark.usefixtures("small_architecture")
def test_nothing_but_tensors_is_unpickled(get: Fetch, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "other": Harmful()}, tmp_path / "harmful.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Harmful()))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    for name in ("harmful.pt", "plain.bin", "program.pt"):
        with pytest.raises(
            io.DataError, match=f"{name}: cannot be read as weights alone.*'open_clip:<architecture>/openai'"
        ):
            get(f"file:{tmp_path / name}", "ViT-tiny-quickgelu")


@pytest.mark.usefixtures("small_architecture")
def test_damaged_and_foreign_files_are_named(
    get: Fetch, open_clip_folder: Path, tmp_path: Path, weights_file: Callable[[str], Path]
) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(io.DataError, match=r"list\.pt: holds no weights by name"):
        get(f"file:{tmp_path / 'list.pt'}", "ViT-tiny-quickgelu")
    with pytest.raises(io.DataError, match=r"not those of the architecture: open_clip_config\.json: asks for [\d,]+"):
        get(f"file:{weights_file('weights.pt')}", "ViT-B-32")
    content = (open_clip_folder / models.WEIGHTS).read_bytes()
    (open_clip_folder / models.WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(io.DataError, match=r"the weights are damaged.*incomplete metadata"):
        get(f"local-dir:{open_clip_folder}")


def test_a_folder_without_a_model_is_named(get: Fetch, tmp_path: Path, weights_file: Callable[[str], Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(io.DataError, match=r"empty: not a model: open_clip_config\.json is missing"):
        get(f"local-dir:{tmp_path / 'empty'}")
    weights_file("one.pt"), weights_file("two.safetensors")
    with pytest.raises(io.DataError, match="2 files of weights"):
        get(f"local-dir:{tmp_path}", "ViT-B-32")


def test_a_failed_pull_says_how_to_go_on(get: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # not a DVC repository
    with pytest.raises(io.DataError, match="snakemake base_model_training"):
        get("dvc:results/none")


@pytest.mark.parametrize(("tower", "key"), [("vision_cfg", "image_size"), ("text_cfg", "context_length")])
def test_weights_for_another_size_are_not_stretched(get: Fetch, open_clip_folder: Path, tower: str, key: str) -> None:
    """As open_clip does with a log message: OpenAI's weights for 224 pixels would pass for those for 336."""
    section = MODEL_CFG[tower] | {key: 2 * MODEL_CFG[tower][key]}
    io.write_json(open_clip_folder / models.ARCHITECTURE, {"model_cfg": MODEL_CFG | {tower: section}})
    with pytest.raises(
        io.DataError, match=r"positional_embedding has shape \[\d+, 32\], the architecture's \[\d+, 32\]"
    ):
        get(f"local-dir:{open_clip_folder}")


def test_timms_weights_are_never_taken_for_the_models(open_clip_folder: Path) -> None:
    (open_clip_folder / "model.safetensors").write_bytes(b"of the image encoder alone")
    assert [file.name for file in formats.find(open_clip_folder).files] == [models.WEIGHTS]


def test_every_layer_of_what_is_fetched_has_the_activation(get: Fetch, open_clip_folder: Path) -> None:
    model = get(f"local-dir:{open_clip_folder}").model
    assert isinstance(model, CLIP)
    assert isinstance(model.visual.transformer.resblocks[0].mlp.gelu, open_clip.model.QuickGELU)
