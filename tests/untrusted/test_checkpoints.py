"""Nothing in a checkpoint is executed, whichever way it comes in; the message names the file."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saferclip import adapters, diffusion, io, models, pickles, untrusted
from saferclip.base_model import formats, training
from saferclip.benchmark import chat
from saferclip.config import ConfigError, LoraSettings

Touching = Callable[[int], bytes]


def test_the_pickle_of_these_tests_does_run_when_it_is_loaded_carelessly(tmp_path: Path) -> None:
    """Or the others would prove nothing."""
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(_Careless(path)))
    assert path.exists()


class _Careless:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def as_torch_archive(content: bytes) -> bytes:
    """What torch.save writes today, with another pickle in it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin"])
def test_a_file_of_weights_is_not_unpickled(tmp_path: Path, touching: Touching, name: str, packed: bool) -> None:
    content = touching(2)
    (tmp_path / name).write_bytes(as_torch_archive(content) if packed else content)
    for place in (tmp_path / name, tmp_path):  # 'file:', and a folder with weights alone
        with pytest.raises(io.DataError, match=rf"{name}: cannot be read as weights alone"):
            formats.find(place, "ViT-B-32").state()


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (models.ARCHITECTURE, "open_clip_pytorch_model.bin"),
        (formats.TRANSFORMERS_CONFIG, "pytorch_model.bin"),
        (formats.TRANSFORMERS_CONFIG, "pytorch_model-00001-of-00001.bin"),
    ],
)
def test_a_folder_with_weights_as_a_pickle(tmp_path: Path, touching: Touching, config: str, weights: str) -> None:
    """'local-dir:', 'download:' and 'hf-hub:' all end in such a folder."""
    from transformers import CLIPConfig

    open_clip = {"model_cfg": formats.named("ViT-B-32"), "preprocess_cfg": {}}
    content = open_clip if config == models.ARCHITECTURE else json.loads(CLIPConfig().to_json_string(use_diff=False))
    (tmp_path / config).write_text(json.dumps(content))
    (tmp_path / weights).write_bytes(touching(2))
    with pytest.raises(io.DataError, match=f"{weights}: cannot be read as weights alone"):
        formats.find(tmp_path).state()


def test_a_pickle_beside_the_weights_is_left_alone(tiny_clip_folder: Path, tmp_path: Path, touching: Touching) -> None:
    copy(tiny_clip_folder, tmp_path)
    for name in ("a.bin", "open_clip_pytorch_model.bin", "model.pth"):
        (tmp_path / name).write_bytes(touching(2))
    assert models.load(tmp_path).architecture == models.load(tiny_clip_folder).architecture


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_q16s_prompts_are_numbers_or_nothing(tmp_path: Path, touching: Touching, protocol: int, packed: bool) -> None:
    path = tmp_path / "prompts.p"
    path.write_bytes(as_torch_archive(touching(protocol)) if packed else touching(protocol))
    with pytest.raises(
        io.DataError, match=r"prompts\.p: cannot be read as an array of numbers.*nothing in it was exec"
    ):
        pickles.read_numbers(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_state_of_base_model_training_is_not_unpickled(tmp_path: Path, touching: Touching, packed: bool) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(as_torch_archive(touching(2)) if packed else touching(2))
    with pytest.raises(io.DataError, match=r"state\.pt: cannot be read as a state of training"):
        training.Checkpoint(path, "digest")._read()


def test_an_adapter_as_a_pickle_is_refused(
    tiny_clip_folder: Path, tmp_path: Path, touching: Touching, lora: LoraSettings
) -> None:
    saved_adapter(tiny_clip_folder, tmp_path, lora)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(touching(2))
    with pytest.raises(io.DataError, match=r"not an adapter in safetensors: adapter_model\.safetensors is missing"):
        adapters.load(models.load(tiny_clip_folder), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            "megatron_config, megatron_core: not used here",
        ),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication: not used here"),
        ({"peft_type": "PROMPT_TUNING"}, "not the settings of LoRA"),
        ({"r": 10**12}, "r is 1000000000000, but no side of the weights is longer than"),
        ({"r": -1}, "r is -1"),
        ({"target_modules": "("}, "cannot be put into the model"),
    ],
)
def test_adapters_that_ask_for_more_than_plain_lora(
    tiny_clip_folder: Path, tmp_path: Path, lora: LoraSettings, change: dict[str, Any], message: str
) -> None:
    saved_adapter(tiny_clip_folder, tmp_path, lora)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(io.DataError, match=message):
        adapters.load(models.load(tiny_clip_folder), tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("embed_dim",), 10**12, r"embed_dim is 1000000000000, more than any model has"),
        (("embed_dim",), 10**6, r"asks for [\d,]+ numbers, but open_clip_model\.safetensors holds"),
        (("embed_dim",), 1e308, "more than any model has"),
        (("embed_dim",), float("nan"), "more than any model has"),
        (("text_cfg", "layers"), 10**6, r"text_cfg\.layers is 1000000, more than any model has \(1,000\)"),
        (("vision_cfg", "layers"), [10**6, 1, 1, 1], r"layers\[0\] is 1000000"),
        (("text_cfg", "context_length"), 10**6, r"asks for [\d,]+ numbers"),  # a mask of its square
        (("text_cfg", "heads"), 0, "do not go together"),
        (("text_cfg", "hf_model_name"), "someone/model", "hf_model_name names 'someone/model' on the hub"),
        (("text_cfg", "hf_tokenizer_name"), "someone/model", "hf_tokenizer_name names 'someone/model' on the hub"),
        (("text_cfg", "tokenizer_kwargs"), {"bpe_path": "/etc/passwd"}, "bpe_path names the file '/etc/passwd'"),
        (("vision_cfg", "timm_model_name"), "hf_hub:someone/model", "timm_model_name is 'hf_hub:someone/model'"),
        (("vision_cfg", "timm_model_name"), "no_such_model", "do not go together"),
        (("vision_cfg",), [], "not open_clip's description of a model"),
        (("surprise",), 1, "do not go together"),
    ],
)
def test_an_architecture_may_not_ask_for_more_than_its_weights(
    tiny_clip_folder: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    copy(tiny_clip_folder, tmp_path)
    path = tmp_path / models.ARCHITECTURE
    content = json.loads(path.read_text())
    section = content["model_cfg"]
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(io.DataError, match=message) as found:
        models.load(tmp_path)
    assert str(tmp_path) in str(found.value)


def test_looking_at_a_model_draws_no_random_numbers(tiny_clip_folder: Path) -> None:
    """Or what is drawn after it, in training, would be another."""
    torch.manual_seed(3)
    architecture = io.read_json(tiny_clip_folder / models.ARCHITECTURE)
    untrusted.check_size(tiny_clip_folder, architecture, tiny_clip_folder / models.WEIGHTS)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def test_a_tensor_without_numbers_does_not_make_room_for_an_architecture(tmp_path: Path) -> None:
    save_file({"a": torch.empty(0, 10**9), "b": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert untrusted.count(tmp_path / "a.safetensors") == 3
    assert untrusted.widest(tmp_path / "a.safetensors") == 3


@pytest.mark.parametrize("name", ["local-dir:/tmp", "hf-hub:someone/model"])
def test_an_architecture_is_a_name_of_the_list(name: str) -> None:
    with pytest.raises(ConfigError, match="open_clip has no"):
        formats.named(name)


def test_models_of_transformers_bring_no_code(tmp_path: Path, marker: Path) -> None:
    """`auto_map` names a module in the folder, which transformers imports if it is trusted."""
    (tmp_path / "theirs.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model", "AutoTokenizer": "theirs.T"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto_map}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["theirs.T", None]}}))
    with pytest.raises(io.DataError, match=f"{tmp_path.name}: holds no chat model"):
        chat._load_chat_model(tmp_path, "fp32")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"unet": ["theirs", "Model"]}, r"unet is of the library \['theirs'\]"),
        ({"unet": ["subprocess", "Popen"]}, r"unet is of the library \['subprocess'\]"),
        (
            {"_class_name": ["theirs", "Pipeline"], "unet": ["diffusers", "UNet2DConditionModel"]},
            r"code of its own \(un",
        ),
        ([], "not the list of a pipeline's parts"),
    ],
)
def test_pipelines_bring_no_code(tmp_path: Path, marker: Path, index: Any, message: str) -> None:
    if "code of its own" in message:
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet/theirs.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(io.DataError, match=message):
        diffusion._index(tmp_path)


def test_arrays_of_objects_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(np.array([{}, {}], dtype=object)))
    with pytest.raises(io.DataError, match=r"prompts\.p: cannot be read as an array of numbers"):
        pickles.read_numbers(path)


def copy(model: Path, folder: Path) -> None:
    """The two files of a model, to be changed."""
    for name in (models.ARCHITECTURE, models.WEIGHTS):
        (folder / name).write_bytes((model / name).read_bytes())


@pytest.fixture
def lora() -> LoraSettings:
    return LoraSettings(rank=2, alpha=2.0, dropout=0.0, target_modules=r".*(c_fc|c_proj)")


def saved_adapter(model: Path, folder: Path, settings: LoraSettings) -> None:
    adapters.save(adapters.attach(models.load(model), settings), folder)
