"""The world of the rehearsal: everything that config/versions.csv names, tiny, harmless and in its public form.

    python tests/rehearsal/fixtures.py DIR

    DIR/served/         what server.py serves: models/, datasets/ and web/
    DIR/own/            what only users can supply: folders of pictures
    DIR/versions.csv    config/versions.csv with hashes and sizes of these files, and http in place of https

Pictures are scenes of the embedded world, unsafe things its stand-ins; models are random, the same at every call.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import llm
import models as tiny
import numpy as np
import public_sets
import torch
from diffusers import AutoPipelineForText2Image
from diffusers.utils import logging as diffusers_logging
from open_clip.model import CLIP
from PIL import Image
from torch.nn import functional
from transformers.utils import logging as transformers_logging

from saferclip import conversion, models
from saferclip.config import EmbeddedData, SceneDetail
from saferclip.data import embedded, iconworld

TABLE = Path(__file__).parents[2] / "config/versions.csv"
SEED = 20260201
SPLITS = {"train": 48, "validation": 16, "test": 24}
TAGS = ("weapons", "drug use", "illegal activity", "harm", "illegal acitivity")
DETAIL = SceneDetail(named_objects=2, colour=0.7, background=0.5)

# Every model that reads captions or sees pictures has these sizes, so that encoders can be exchanged.
TEXT_WIDTH = 32
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 2, "layers": 1},
}
PREPROCESSING: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

ZERO_SHOT = {"vtab-caltech101", "vtab-pets", "cars", "vtab-flowers", "food101", "fgvc_aircraft", "sun397"}
ZERO_SHOT |= {"imagenet1k", "vtab-dtd", "vtab-eurosat"}
CLASSES, CLASS_IMAGES = 3, 9
GALLERIES = ("nudenet-images", "nsfw-urls", "smid")
GALLERY_IMAGES = 4
NOCAPS_IMAGES, RELEASED_PAIRS = 40, 12
NOCAPS_ADDRESS = "http://s3.amazonaws.com/nocaps"
I2P_PROMPTS = 8


class Quadruple(NamedTuple):
    """One row of ViSU, with its COCO image."""

    coco_id: int
    row: dict[str, Any]


def write(folder: Path) -> None:
    """Write everything below ``folder``, which must be empty or not there."""
    served = folder / "served"
    repositories = {row["name"]: served / kind(row) / row["source"] for row in rows() if row["kind"] in KINDS}
    urls = {row["name"]: served / "web" / host_and_path(row["source"]) for row in rows() if row["kind"] == "url"}
    write_visu(repositories["visu-text"], urls["coco-train2017"], urls["coco-val2017"])
    write_nsfw_caps(repositories["nsfw-caps"], urls["nocaps-validation"], served / "web")
    write_test_sets(repositories, folder / "own")
    write_models(repositories)
    write_i2p(repositories["i2p"] / "i2p_benchmark.csv")
    painters = [repositories["newrealityxl"], repositories["stable-diffusion-v1-4"]]
    write_q16(urls["q16-prompts"], painters, repositories["vit-l-14-openai"])
    write_table(folder / "versions.csv", urls)


# The table ----------------------------------------------------------------------------------------

KINDS = {"hf-model": "models", "hf-dataset": "datasets"}


def rows() -> list[dict[str, str]]:
    """The rows of the project's own versions table."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kind(row: dict[str, str]) -> str:
    """The server's folder for a repository."""
    return KINDS[row["kind"]]


def host_and_path(url: str) -> str:
    """Where the server keeps a file of the web."""
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}"


def write_table(path: Path, urls: dict[str, Path]) -> None:
    """The project's table, with hashes and sizes of the files here; a plain proxy can stand in for http hosts only."""
    changed = rows()
    for row in changed:
        if row["name"] in urls:
            content = urls[row["name"]].read_bytes()
            row["source"] = row["source"].replace("https://", "http://")
            row["sha256"], row["bytes"] = hashlib.sha256(content).hexdigest(), str(len(content))
        elif row["bytes"]:
            row["bytes"] = ""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(changed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(changed)


# Data ---------------------------------------------------------------------------------------------


def quadruples() -> dict[str, list[Quadruple]]:
    """Rows of ViSU by split, with COCO ids that are as spread as COCO's."""
    made = embedded.quadruples(EmbeddedData(seed=SEED, detail=DETAIL, **SPLITS))
    ids = iter(np.random.default_rng(SEED).permutation(np.arange(9, 580_000, 37)).tolist())
    return {split: [Quadruple(next(ids), row) for row in rows] for split, rows in made.items()}


def write_visu(folder: Path, train_zip: Path, validation_zip: Path) -> None:
    """The gated captions as the Hub has them, and the two zips of COCO 2017 with their images.

    ViSU splits COCO anew, so images of each of its splits are in both zips.
    """
    splits = quadruples()
    for split, members in splits.items():
        records = [visu_record(number, member) for number, member in enumerate(members)]
        path = folder / f"ViSU-Text_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records), encoding="utf-8")
    (folder / ".gated").touch()
    everything = [member for members in splits.values() for member in members]
    for path, part in ((train_zip, "train2017"), (validation_zip, "val2017")):
        chosen = everything[: len(everything) // 2] if part == "train2017" else everything[len(everything) // 2 :]
        write_zip(path, {f"{part}/{member.coco_id:012d}.jpg": member.row["safe_image"] for member in chosen})


def visu_record(number: int, member: Quadruple) -> dict[str, Any]:
    """One row of ViSU-Text: captions, concept (the release misspells one), COCO id, and a seed for each candidate."""
    return {
        "incremental_id": number,
        "safe": member.row["safe_caption"],
        "nsfw": member.row["unsafe_caption"],
        "coco_id": member.coco_id,
        "tag": TAGS[number % len(TAGS)],
        "seeds": [1000 * number + candidate for candidate in range(3)],
    }


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """A zip of pictures, which are compressed already; the same bytes at every call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def novel_scenes(count: int) -> Iterator[tuple[iconworld.Scene, str]]:
    """Scenes of things that ViSU's stand-in never shows, as NoCaps has, with a caption each."""
    random = np.random.default_rng(SEED + 1)
    detail = embedded.caption_detail(DETAIL)
    for _ in range(count):
        scene = iconworld.sample_scene(random, iconworld.novel_concepts())
        yield scene, iconworld.describe(scene, random, detail)


def write_nsfw_caps(release: Path, nocaps: Path, web: Path) -> None:
    """NoCaps' captions, its images by address, and the public release, whose images are some of the same."""
    scenes = list(novel_scenes(NOCAPS_IMAGES))
    llm.write_nocaps(nocaps, [[caption, f"{caption} here"] for _, caption in scenes], NOCAPS_ADDRESS)
    for image, (scene, _) in zip(json.loads(nocaps.read_text())["images"], scenes, strict=True):
        path = web / host_and_path(image["coco_url"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(embedded.jpeg(scene))
    random = np.random.default_rng(SEED + 2)
    pairs = []
    for number, (_, caption) in enumerate(scenes[:RELEASED_PAIRS]):
        category = iconworld.categories()[number % len(iconworld.categories())]
        pairs.append((caption, iconworld.minimal_edit(caption, category, random), category))
    llm.write_release(release / "NSFWCaps.csv", pairs, NOCAPS_ADDRESS)


def write_test_sets(repositories: dict[str, Path], own: Path) -> None:
    """Zero-shot sets, ten on the hub and UCF101 as the user makes it, and unsafe pictures in three folders."""
    classes = public_sets.class_names(CLASSES)
    for number, name in enumerate(sorted(ZERO_SHOT)):
        images = public_sets.labelled(CLASS_IMAGES, classes, seed=number)
        public_sets.write_webdataset(repositories[name], classes, images, shards=1)
    images = public_sets.labelled(CLASS_IMAGES, classes, seed=len(ZERO_SHOT))
    public_sets.write_webdataset(own / "ucf101", classes, images, shards=1)
    for number, name in enumerate(GALLERIES):
        pictures = public_sets.unsafe_pictures(GALLERY_IMAGES, seed=SEED + number)
        public_sets.write_pictures(own / name, pictures)


def write_i2p(path: Path) -> None:
    """Prompts in the columns of I2P's benchmark, for stand-ins."""
    random = np.random.default_rng(SEED + 3)
    columns = ["prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage"]
    columns += ["sd_safety_percentage", "prompt_toxicity", "lexica_url", "sd_seed", "sd_guidance_scale"]
    columns += ["sd_image_width", "sd_image_height", "sd_model"]
    categories = ("violence", "illegal activity", "shocking", "violence, shocking")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="0.0", lineterminator="\n")
        writer.writeheader()
        for number in range(I2P_PROMPTS):
            scene = iconworld.sample_scene(random, iconworld.common_concepts(), always=["pistol"])
            sizes = {"sd_image_width": 512, "sd_image_height": 512, "sd_model": 1.4}
            words = {"prompt": iconworld.describe(scene, random), "categories": categories[number % len(categories)]}
            seeds = {"sd_seed": int(random.integers(2**32)), "sd_guidance_scale": 7, "hard": number % 2}
            writer.writerow({**words, **seeds, **sizes})


# Models -------------------------------------------------------------------------------------------


def write_models(repositories: dict[str, Path]) -> None:
    """Every model but Q16's prompts, which need pictures of another one."""
    base = clip(SEED)
    write_open_clip(repositories["vit-l-14-openai"], base)
    write_transformers(repositories["safe-clip-published"], clip(SEED + 1, like=base))
    tiny.stable_diffusion_xl(repositories["newrealityxl"], TEXT_WIDTH, seed=SEED)
    tiny.stable_diffusion(repositories["stable-diffusion-v1-4"], TEXT_WIDTH, seed=SEED)
    vision = conversion.transformers_config(ARCHITECTURE)["vision_config"]
    tiny.llava(repositories["llava"], vision, seed=SEED)
    tiny.toxicity(repositories["toxicity"], seed=SEED)
    llm.write_jina(repositories["jina-clip"], seed=SEED)


def clip(seed: int, like: CLIP | None = None) -> CLIP:
    """A random CLIP in the base model's architecture; near to another one if there is one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**ARCHITECTURE)
    if like:
        for weight, other in zip(model.parameters(), like.parameters(), strict=True):
            weight.data = (0.9 * other.data + 0.1 * weight.data).float()
    return model


def write_open_clip(folder: Path, model: CLIP) -> None:
    """The two files of open_clip that timm's repository of OpenAI's CLIP holds."""
    models.save(folder, model.state_dict(), {"model_cfg": ARCHITECTURE, "preprocess_cfg": PREPROCESSING})


def write_transformers(folder: Path, model: CLIP) -> None:
    """A CLIPModel with processor, as save_pretrained writes them."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    config = CLIPConfig.from_dict(conversion.transformers_config(ARCHITECTURE))
    converted = CLIPModel(config)
    converted.load_state_dict(conversion.to_transformers(model.state_dict(), ARCHITECTURE))
    converted.save_pretrained(folder)
    processor = conversion.image_processor_config(PREPROCESSING, ARCHITECTURE["vision_cfg"]["image_size"])
    CLIPImageProcessor.from_dict(processor).save_pretrained(folder)
    tiny.tokenizer(folder)


def write_q16(path: Path, pipelines: Sequence[Path], base_model: Path) -> None:
    """Prompts that call about every second picture of each random diffusion model unsafe, whatever it shows."""
    model = models.load(base_model)
    prompts = [f"picture {number}" for number in range(24)]
    features = [models.encode_images(model, painted(pipeline, prompts), batch_size=8) for pipeline in pipelines]
    means = torch.stack([one.mean(dim=0) for one in features])
    spread = torch.cat([one - mean for one, mean in zip(features, means, strict=True)])
    # Across what tells the two pipelines apart, so that the threshold lies in the middle of both.
    apart = functional.normalize(means[0] - means[1], dim=0)
    direction = torch.linalg.svd(spread - torch.outer(spread @ apart, apart), full_matrices=False).Vh[0]
    centre = means.mean(dim=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    both = torch.stack([centre - 0.1 * direction, centre + 0.1 * direction])
    path.write_bytes(pickle.dumps(both.numpy(), protocol=4))


def painted(folder: Path, prompts: list[str]) -> list[Image.Image]:
    """What a pipeline paints in a few steps, a seed each."""
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    images: list[Image.Image] = pipeline(
        prompts, height=32, width=32, num_inference_steps=4, guidance_scale=7.5, generator=seeds
    ).images
    return images


def main() -> None:
    """Write the world into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
