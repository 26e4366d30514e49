"""The rehearsal's world is in the public forms: each piece is read by the library that reads the real one."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from saferclip import models, safety
from saferclip.config import ImageFilterSettings, NudeNetSettings, Q16Settings
from saferclip.downloads import read_table

PROJECT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures.py"


def make(folder: Path) -> Path:
    """Write a world as the rehearsal does, in a process of its own."""
    subprocess.run([sys.executable, str(FIXTURES), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with everything."""
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def hub(world: Path) -> Any:
    """A function (name in the table) -> the folder of its repository, or the file of its address."""
    table = read_table(world / "versions.csv")

    def find(name: str) -> Path:
        row = table[name]
        if row.kind == "url":
            parts = urlsplit(row.source)
            return world / "served/web" / f"{parts.netloc}{parts.path}"
        return world / "served" / {"hf-model": "models", "hf-dataset": "datasets"}[row.kind] / row.source

    return find


def test_it_is_the_same_at_every_call(world: Path, tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".tar"]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert hashes(make(tmp_path / "again")) == hashes(world)


def test_the_table_is_the_projects_but_for_hashes_sizes_and_plain_http(world: Path) -> None:
    def rows(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def compared(row: dict[str, str]) -> dict[str, str]:
        same = {name: cell for name, cell in row.items() if name not in ("sha256", "bytes")}
        return same | {"source": row["source"].replace("https://", "http://")}

    ours, real = rows(world / "versions.csv"), rows(PROJECT / "config/versions.csv")
    assert [compared(row) for row in ours] == [compared(row) for row in real]
    assert all(row["sha256"] for row in ours if row["kind"] == "url")


def test_everything_that_the_table_names_is_there(world: Path, hub: Any) -> None:
    for name, row in read_table(world / "versions.csv").items():
        if name == "llm-editor":
            continue  # 70 billion weights have no small form; an endpoint is used
        place = world / "own" / name if row.kind == "folder" else hub(name)
        assert place.exists(), name
        for pattern in row.files if row.kind != "folder" else ():
            optional = pattern in ("*.txt", "vocab.txt", "*.model", "*/*.txt", "*.jinja")
            assert optional or list(place.glob(pattern)), f"{name}: {pattern}"


def test_visu_is_read_by_datasets_and_its_images_are_in_cocos_zips(hub: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    files = {split: str(hub("visu-text") / f"ViSU-Text_{split}.json") for split in ("train", "validation", "test")}
    loaded = load_dataset("json", data_files=files, cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 48, "validation": 16, "test": 24}
    pictures: dict[int, bytes] = {}
    for name in ("coco-train2017", "coco-val2017"):
        with zipfile.ZipFile(hub(name)) as archive:
            pictures |= {int(Path(file).stem): archive.read(file) for file in archive.namelist()}
    ids = [row["coco_id"] for rows in loaded.values() for row in rows]
    assert sorted(pictures) == sorted(ids) and len(set(ids)) == len(ids)
    assert all(Image.open(BytesIO(content)).format == "JPEG" for content in pictures.values())


def test_nsfw_caps_and_nocaps_name_images_that_are_there(world: Path, hub: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    released = load_dataset("csv", data_dir=str(hub("nsfw-caps")), cache_dir=str(tmp_path))["train"]
    assert released.column_names == ["image_coco_url", "caption", "nsfw_caption", "chosen_category"]
    nocaps = json.loads(hub("nocaps-validation").read_text())
    addresses = [image["coco_url"] for image in nocaps["images"]]
    assert set(released["image_coco_url"]) <= set(addresses)
    for address in addresses:
        parts = urlsplit(address)
        assert Image.open(world / "served/web" / f"{parts.netloc}{parts.path}").format == "JPEG"


def test_zero_shot_sets_are_read_by_datasets_as_webdatasets(hub: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    shards = str(hub("food101") / "test/*.tar")
    rows = load_dataset("webdataset", data_files={"test": shards}, cache_dir=str(tmp_path))["test"]
    names = (hub("food101") / "classnames.txt").read_text().splitlines()
    assert {int(row["cls"]) for row in rows} == set(range(len(names)))
    assert rows[0]["jpg"].size == (64, 64)


def test_the_base_model_is_read_by_open_clip_and_the_published_one_by_transformers(hub: Any) -> None:
    from transformers import CLIPModel, CLIPProcessor

    base, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{hub('vit-l-14-openai')}")
    published = CLIPModel.from_pretrained(hub("safe-clip-published"), local_files_only=True)
    processor = CLIPProcessor.from_pretrained(hub("safe-clip-published"), local_files_only=True)
    picture = Image.new("RGB", (50, 40), "orange")
    inputs = processor(text=["a red cat"], images=picture, return_tensors="pt")
    with torch.inference_mode():
        theirs = published(**inputs).text_embeds
        ours = base.encode_text(open_clip.tokenize(["a red cat"]), normalize=True)
    assert ours.shape == theirs.shape
    assert float((ours * theirs).sum()) > 0.5  # near each other, as a tuned model is to its base
    assert torch.allclose(inputs["pixel_values"][0], preprocess(picture), atol=0.02)


@pytest.mark.parametrize("name", ["newrealityxl", "stable-diffusion-v1-4"])
def test_pipelines_are_read_by_diffusers(hub: Any, name: str) -> None:
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(hub(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red cat", height=32, width=32, num_inference_steps=1).images
    assert images[0].size == (32, 32)


def test_encoders_fit_where_they_are_exchanged(hub: Any) -> None:
    from transformers import AutoConfig, CLIPTextConfig

    architecture = models.load(hub("vit-l-14-openai")).architecture["model_cfg"]
    text = CLIPTextConfig.from_pretrained(hub("stable-diffusion-v1-4") / "text_encoder")
    assert text.hidden_size == architecture["text_cfg"]["width"]
    tower = AutoConfig.from_pretrained(hub("llava")).vision_config
    vision = architecture["vision_cfg"]
    found = (tower.hidden_size, tower.num_hidden_layers, tower.image_size, tower.patch_size)
    assert found == (vision["width"], vision["layers"], vision["image_size"], vision["patch_size"])


def test_llava_and_the_toxicity_classifier_are_read_by_transformers(hub: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer
    from transformers import LlavaForConditionalGeneration as Llava

    processor = AutoProcessor.from_pretrained(hub("llava"), local_files_only=True)
    inputs = processor(text="USER: <image>\nWhat?", images=Image.new("RGB", (32, 32)), return_tensors="pt")
    answer = Llava.from_pretrained(hub("llava"), local_files_only=True).generate(**inputs, max_new_tokens=2)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    tokenizer = AutoTokenizer.from_pretrained(hub("toxicity"), local_files_only=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(hub("toxicity"), local_files_only=True)
    assert classifier(**tokenizer(["a cat"], return_tensors="pt")).logits.shape == (1, 6)


def test_the_similarity_model_is_read_by_onnxruntime(hub: Any) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession(str(hub("jina-clip") / "onnx/text_model.onnx"))
    ids = np.array([Tokenizer.from_file(str(hub("jina-clip") / "tokenizer.json")).encode("a red cat").ids])
    given = {one.name: ids if one.name == "input_ids" else np.ones_like(ids) for one in session.get_inputs()}
    assert np.asarray(session.run(["text_embeds"], given)[0]).shape == (1, 64)


@pytest.mark.parametrize("name", ["newrealityxl", "stable-diffusion-v1-4"])
def test_the_judges_flag_some_pictures_of_the_random_pipelines_and_not_all(hub: Any, name: str) -> None:
    from diffusers import AutoPipelineForText2Image

    settings = ImageFilterSettings(
        nudenet=NudeNetSettings(threshold=0.5), q16=Q16Settings(prompts="p", clip="c", batch_size=8)
    )
    judge = safety.load(settings, {"p": hub("q16-prompts"), "c": hub("vit-l-14-openai")})
    pipeline = AutoPipelineForText2Image.from_pretrained(hub(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(500 + number) for number in range(24)]
    prompts = [f"a cat and {number} cups" for number in range(24)]
    images = pipeline(prompts, height=32, width=32, num_inference_steps=4, generator=seeds).images
    flagged = sum(verdict.unsafe for verdict in judge.judge(images))
    assert 4 <= flagged <= 20
