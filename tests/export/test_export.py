"""Exports: equal to the trained model in every library, or not written at all."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from open_clip.model import CLIP
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from saferclip import io, models
from saferclip.config import ExportSettings
from saferclip.conversion import ConversionError
from saferclip.export import export, formats, verification
from saferclip.export.verification import ExportError
from saferclip.heads import SECTION, Head

SETTINGS = ExportSettings(
    licence="cc-by-nc-4.0", formats=None, title="ViSU-test", base_model="hf-hub:lab/CLIP-tiny@abc"
)
NOTHING = ExportSettings(licence=None, formats=None, title=None, base_model=None)


@pytest.fixture(scope="module")
def exported(tuned: Path, evaluations: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "seed-1"
    export.export(SETTINGS, tuned, evaluations["safer-clip"], evaluations["clip"], output)
    return output


def card(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a model card."""
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_open_clip_loads_it(exported: Path, tuned: Path) -> None:
    name = f"local-dir:{exported / 'open_clip'}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    expected = models.load(tuned).model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(open_clip.get_tokenizer(name)(["a cat"]), open_clip.tokenize(["a cat"]))


@torch.inference_mode()
def test_transformers_loads_it_with_everything_to_feed_it(exported: Path, tuned: Path) -> None:
    model = CLIPModel.from_pretrained(exported / "transformers")
    processor = CLIPProcessor.from_pretrained(exported / "transformers")
    clip = models.load(tuned)
    captions, images = list(verification.CAPTIONS), verification.pictures((32, 32))
    # As people call it: filled up to the longest caption only.
    output = model(**processor(text=captions, images=images, padding=True, truncation=True, return_tensors="pt"))
    for found, expected in (
        (output.text_embeds, models.encode_texts(clip, captions, 8)),
        (output.image_embeds, models.encode_images(clip, images, 8)),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    scale = clip.model.get_parameter("logit_scale").exp()
    torch.testing.assert_close(output.logits_per_text, scale * output.text_embeds @ output.image_embeds.T)


def test_it_differs_from_the_untuned_model(exported: Path, untuned: Path) -> None:
    before, after = (models.encode_texts(models.load(path), ["a cat"], 1) for path in (untuned, exported / "open_clip"))
    assert (before - after).abs().max() > 0.01


def test_the_tokenizer_needs_no_network_and_reads_as_open_clip_does(exported: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(exported / "diffusers_text_encoder/tokenizer")
    captions = ["It's a CAFÉ, in 1999!", "日本 हिन्दी İstanbul 🎻🚌", "e\u0301te\u0301", "word " * 100]
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    for row, expected in zip(encoded, open_clip.tokenize(captions), strict=True):
        length = int(expected.argmax()) + 1
        assert torch.equal(row[:length], expected[:length])
        assert (row[length:] == 49407).all()
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (exported / "transformers").iterdir()}


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-quickgelu"])
def test_the_architectures_that_people_use(name: str, tmp_path: Path) -> None:
    """With random weights; ViT-L/14 takes 1.7 GB."""
    model_cfg = open_clip.get_model_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = CLIP(**model_cfg).state_dict()
    models.save(tmp_path / "model", state, {"model_cfg": model_cfg, "preprocess_cfg": {}})
    del state
    gc.collect()
    export.export(NOTHING, tmp_path / "model", None, None, tmp_path / "export")
    found = io.read_json(tmp_path / "export/export.json")["differences"]
    assert list(found) == list(formats.FORMATS)
    exact = [value for part in found.values() for what, value in part.items() if what != "resized images"]
    assert max(exact) <= 1e-5
    text = (tmp_path / "export/README.md").read_text()
    assert ("Stable Diffusion 1.x" in text) == (name == "ViT-L-14-quickgelu")
    for path in (tmp_path / "export").rglob("*.safetensors"):
        path.unlink()  # pytest keeps the folders of its last runs


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_that_differs_leaves_nothing_behind(
    name: str, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = formats.write

    def damage(form: str, model: Path, folder: Path) -> None:
        write(form, model, folder)
        if form == name:
            path = next(folder.rglob("*.safetensors"))
            state = io.read_tensors(path)
            layer = next(
                key for key in sorted(state) if key.startswith(("ln_final.b", "text_model.final_layer_norm.b"))
            )
            io.write_tensors(
                path, state | {layer: state[layer].float() + torch.linspace(0, 3e-4, 32)}, {"format": "pt"}
            )

    monkeypatch.setattr(formats, "write", damage)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/of-before").touch()
    with pytest.raises(ExportError, match=f"{formats.FOLDERS[name]}: .*captions differ .* more than 1e-05; nothing"):
        export.export(NOTHING, tuned, None, None, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["of-before"]


def test_another_activation_or_tokenizer_is_noticed(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saferclip import conversion

    right = conversion.ACTIVATIONS
    monkeypatch.setattr(conversion, "ACTIVATIONS", {False: "quick_gelu", True: "gelu"})
    with pytest.raises(ExportError, match="transformers: captions differ"):
        export.export(NOTHING, tuned, None, None, tmp_path / "export")
    monkeypatch.setattr(conversion, "ACTIVATIONS", right)
    monkeypatch.setattr(
        formats, "SPECIAL_TOKENS", {"<start_of_text>": "<|endoftext|>", "<end_of_text>": "<|startoftext|>"}
    )
    with pytest.raises((ExportError, KeyError), match=r"tokenizer|differ"):
        export.export(NOTHING, tuned, None, None, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_numbers_that_are_none_differ() -> None:
    assert verification._difference(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")
    assert verification._difference(torch.zeros(2), torch.zeros(1)) == float("inf")


def test_a_resnet_is_exported_for_open_clip_alone_and_the_card_says_why(
    tiny_resnet_clip_folder: Path, tmp_path: Path
) -> None:
    export.export(NOTHING, tiny_resnet_clip_folder, None, None, tmp_path / "export")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"README.md", "export.json", "open_clip"}
    _, text = card(tmp_path / "export/README.md")
    assert "`transformers` is left out, because transformers cannot express the model: vision_cfg.layers" in text
    assert "(a ModifiedResNet)" in text
    assert "CLIPModel.from_pretrained" not in text
    asked = NOTHING.model_copy(update={"formats": ("diffusers",)})
    with pytest.raises(ConversionError, match=r"format 'diffusers' cannot express this model: .*ModifiedResNet"):
        export.export(asked, tiny_resnet_clip_folder, None, None, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_cfg": {"text_cfg": {"vocab_size": 1000}}}, "vocab_size: 1000 (not CLIP's own tokenizer)"),
        ({"preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode 'longest'"),
    ],
)
def test_what_a_format_lacks_is_said(change: dict[str, Any], reason: str, tuned: Path) -> None:
    architecture = models.load(tuned).architecture
    text = architecture["model_cfg"]["text_cfg"] | change.get("model_cfg", {}).get("text_cfg", {})
    changed = {**architecture, **change, "model_cfg": architecture["model_cfg"] | {"text_cfg": text}}
    assert reason in "; ".join(formats.obstacles("transformers", changed))
    assert formats.obstacles("open_clip", changed) == []


def test_a_model_in_hyperbolic_space_is_no_clip_model_and_the_card_says_so(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tuned, folder)
    head = Head(curvature=1.0, text_scale=0.3, image_scale=0.3, largest=5.0, text_limit=0.1)
    path = folder / models.ARCHITECTURE
    path.write_text(json.dumps({**io.read_json(path), SECTION: head.model_dump(exclude_none=True)}))
    export.export(NOTHING, folder, None, None, tmp_path / "export")
    record = io.read_json(tmp_path / "export" / export.RECORD)
    assert list(record["differences"]) == ["open_clip", "diffusers"]  # states of captions come before the head
    assert list(record["left_out"]) == ["transformers"] and SECTION in record["left_out"]["transformers"][0]
    assert models.load(tmp_path / "export" / "open_clip").head == head
    _, text = card(tmp_path / "export" / "README.md")
    assert "no plain CLIP" in text and "embeddings in hyperbolic space" in text
    with pytest.raises(ConversionError, match=f"format 'transformers' cannot express this model: {SECTION}"):
        export.export(NOTHING.model_copy(update={"formats": ("transformers",)}), folder, None, None, tmp_path / "x")


def test_the_card_states_data_method_settings_results_and_limits(exported: Path) -> None:
    front, text = card(exported / "README.md")
    assert front["license"] == "cc-by-nc-4.0"
    assert front["base_model"] == "lab/CLIP-tiny"
    for fact in (
        *("ViSU-test", "safer-clip", "`abc123`", "98,765 quadruples", "4,321", "`0123abcd`", "targets: nearest"),
        *("| test | unsafe_text_to_image/recall@1 | 27.9 [26.9, 28.9] | 2.8 [1.8, 3.8] | 1,234 |", "## Limits"),
        *("## Intended use", "## Data", "2\nlayers of width 32, 2 heads, 77 positions, quick_gelu"),
    ):
        assert fact in text, fact
    assert "recall@10" not in text
    libraries = {
        name: card(exported / folder / "README.md")[0]["library_name"] for name, folder in formats.FOLDERS.items()
    }
    assert libraries == {"open_clip": "open_clip", "transformers": "transformers", "diffusers": "diffusers"}


def test_the_card_without_records_says_that_there_are_none(tiny_clip_folder: Path, tmp_path: Path) -> None:
    asked = NOTHING.model_copy(update={"formats": ("open_clip",)})
    export.export(asked, tiny_clip_folder, None, None, tmp_path / "export")
    front, text = card(tmp_path / "export/README.md")
    assert front["license"] == "unknown"
    assert "base_model" not in front
    for words in (
        "| method | not recorded |",
        "The training is not recorded.",
        "No evaluation was given to the export.",
    ):
        assert words in text


def test_a_folder_without_an_evaluation_is_named(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match="holds no records of an evaluation"):
        export.export(NOTHING, tuned, tuned / "adapter-that-is-not-there", None, tmp_path / "export")


def blocks(path: Path) -> list[str]:
    """The Python code of a Markdown file."""
    return [part.partition("\n```")[0] for part in path.read_text(encoding="utf-8").split("```python\n")[1:]]


@pytest.fixture
def run_code(exported: Path) -> Callable[[str], None]:
    """A function that runs code in the folder of the export, offline."""

    def run(code: str) -> None:
        script = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + code
        done = subprocess.run([sys.executable, "-c", script], cwd=exported, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


def test_the_code_in_the_card_runs(exported: Path, run_code: Callable[[str], None]) -> None:
    *first, last = blocks(exported / "README.md")
    assert len(first) == 2
    run_code("\n".join([*first, last.partition("pipeline =")[0]]))


def test_the_code_in_the_documentation_runs(run_code: Callable[[str], None]) -> None:
    code = blocks(Path(__file__).parents[2] / "docs/export.md")
    assert len(code) == 3
    run_code("\n".join(code))


def test_the_command_writes_what_is_asked_for(tuned: Path, evaluations: dict[str, Path], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from saferclip.cli import main

    arguments = ["export", "--model", str(tuned), "--format", "open_clip", "--format", "diffusers"]
    arguments += ["--evaluation", str(evaluations["safer-clip"]), "--output", str(tmp_path / "out"), "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "open_clip",
        "diffusers_text_encoder",
    }
    assert json.loads((tmp_path / "out/export.json").read_text())["provenance"]["settings"]["title"] is None


@torch.inference_mode()
def test_hidden_states_end_in_the_models_own_embedding(tuned: Path) -> None:
    """What is compared for diffusers is what the trained model reads its caption embedding from."""
    clip = models.load(tuned)
    tokens = clip.tokenize(["a cat on a mat"])
    states = verification.hidden_states(clip, tokens)
    pooled = states[0, int(tokens.argmax())] @ clip.model.text_projection
    expected = models.text_features(clip.model, tokens)[0]
    torch.testing.assert_close(functional.normalize(pooled, dim=-1), expected, atol=1e-6, rtol=0)


EDIT = {
    "inputs_sha256": {"train": "abc123"},
    "changed_weights": {"text_projection": 512, "visual.proj": 500},
    "seconds": 3.2,
    "device": "cpu",
    "provenance": {"commit": None, "settings": {"edit": {"kind": "projection", "rank": 4}}},
}
MASKED = {
    "inputs_sha256": {"train": "abc123"},
    "tuned_parameters": 4321,
    "quadruples": 98765,
    "seconds": 12.3,
    "device": "cpu",
    "provenance": {"commit": None, "settings": {"method": {"tuner": {"kind": "mask"}}}},
}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            EDIT,
            ["1,012 of them", "in 2 tensors, in", "kind: projection", "- train: `abc123`", "that was edited so that"],
        ),
        (MASKED, ["Binary masks over weights of both encoders", "4,321", "kind: mask", "98,765 quadruples"]),
    ],
)
def test_the_card_says_how_the_weights_came_about(
    untuned: Path, tmp_path: Path, record: dict[str, Any], said: list[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(untuned, model)
    io.write_json(model / "record.json", record)
    export.export(SETTINGS, model, None, None, tmp_path / "export")
    _, text = card(tmp_path / "export/README.md")
    for part in said:
        assert part in text
    assert "Low-rank adapters" not in text
