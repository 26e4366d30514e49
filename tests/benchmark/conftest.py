"""Stand-ins for tests of the NSFW-Caps builder: a language model, and painters and judges that are quick."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from saferclip import io
from saferclip.benchmark import prompts
from saferclip.benchmark.backends import Source
from saferclip.benchmark.chat import Endpoint, Remembered
from saferclip.benchmark.editor import LanguageModelEditor
from saferclip.benchmark.sources import file_name
from saferclip.config import BenchmarkSettings, EndpointSettings

REHEARSAL = Path(__file__).parents[1] / "rehearsal"
ADDRESS = "http://images.invalid"
SAFE = (
    "A vase filled with white flowers sits on a table.",
    "A koala sleeps in a tall tree.",
    "A man plays the violin in a concert hall.",
    "An old tractor stands on a field of corn.",
    "Two cooks chop vegetables in a bright kitchen.",
    "A red lighthouse above the rough sea.",
    "A kangaroo jumps over a wooden fence.",
    "A typewriter and a cup of coffee on a desk.",
    "A ferris wheel at night, seen from the river.",
    "A jellyfish floats in deep blue water.",
    "A snowmobile parked in front of a cabin.",
    "A saxophone leans against a brick wall.",
)


@pytest.fixture(scope="session")
def llm() -> ModuleType:
    """The module of the rehearsal's language model."""
    return rehearsal("llm")


@pytest.fixture(scope="session")
def small_models() -> ModuleType:
    """The module of the rehearsal's other models."""
    return rehearsal("models")


def rehearsal(name: str) -> ModuleType:
    """A module of the rehearsal, which is no package."""
    spec = importlib.util.spec_from_file_location(f"rehearsal_{name}", REHEARSAL / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"rehearsal_{name}"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(llm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running language model that answers with harmless minimal edits."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with llm.LanguageModel() as running:
        yield running


def endpoint(address: str, **changes: Any) -> EndpointSettings:
    values = {
        "base_url": address,
        "model": "rehearsal-editor",
        "concurrency": 2,
        "timeout": 5.0,
        "retries": 2,
        "prompts": "v1",
        "temperature": 0.7,
        "max_tokens": 128,
        "attempts": 3,
    }
    return EndpointSettings.model_validate(values | changes)


@pytest.fixture
def editor(model: Any, tmp_path: Path) -> Callable[..., LanguageModelEditor]:
    """A function (max_changed_words=8, **settings) -> an editor that asks the running model."""

    def make(max_changed_words: int = 8, **changes: Any) -> LanguageModelEditor:
        settings = endpoint(model.address, **{"concurrency": 1, **changes})
        chat = Remembered(Endpoint(settings), tmp_path / "state/answers.jsonl")
        return LanguageModelEditor(chat, prompts.load("v1"), settings.attempts, 7, max_changed_words)

    return make


def source(caption: str, *others: str) -> Source:
    return Source(caption, None, others)


def picture(seed: int, size: int = 64) -> Image.Image:
    """Coloured tiles, different for each seed."""
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(tiles.repeat(size // 8, axis=0).repeat(size // 8, axis=1))


class Verdict(NamedTuple):
    unsafe: bool
    scores: dict[str, float]


@dataclass
class Painter:
    """Paints tiles that depend on the seed alone, and remembers what it was asked for."""

    prompts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        self.prompts += prompts
        self.seeds += seeds
        self.batches.append(len(prompts))
        return [picture(seed) for seed in seeds]


@dataclass
class Judge:
    """Flags images by a rule of the test's, by default all."""

    rule: Callable[[Image.Image], bool] = lambda _image: True
    judged: int = 0

    def judge(self, images: Sequence[Image.Image]) -> list[Verdict]:
        self.judged += len(images)
        return [Verdict(self.rule(image), {"nudenet": float(self.rule(image))}) for image in images]


def write_images(folder: Path, urls: Sequence[str], missing: Sequence[str] = ()) -> Path:
    """Files as the step benchmark_images leaves them; returns the list."""
    there = [url for url in urls if url not in missing]
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for number, url in enumerate(there):
        (folder / "files" / file_name(url)).write_bytes(io.encode_jpeg(np.asarray(picture(1000 + number))))
    images = {url: f"files/{file_name(url)}" for url in there}
    io.write_json(folder / "manifest.json", {"images": images, "missing": dict.fromkeys(missing, "not found (404)")})
    return folder / "manifest.json"


def nocaps_settings(address: str, **changes: Any) -> BenchmarkSettings:
    """NSFW-Caps built anew, with a stand-in for JINA-CLIP."""
    values: dict[str, Any] = {
        "source": "nocaps",
        "nocaps": {"captions": "nocaps-validation"},
        "size": 6,
        "seed": 3,
        "editor": "endpoint",
        "endpoint": endpoint(address).model_dump(),
        "image_maker": "none",
        "similarity": "jina-clip",
        "jina_clip": {"model": "jina-clip", "batch_size": 4},
        "safety_filter": "none",
        "min_similarity": 0.0,
        "max_similarity": 1.0,
        "max_changed_words": 8,
        "candidates": 3,
    }
    return BenchmarkSettings.model_validate(values | changes)


def painted_settings() -> dict[str, Any]:
    """Settings of a diffusion model and NudeNet, which name what to draw and judge with."""
    diffusion = {
        "model": "painter",
        "steps": 1,
        "guidance": 5.0,
        "image_size": 64,
        "precision": "fp32",
        "batch_size": 4,
    }
    return {
        "image_maker": "diffusion",
        "diffusion": diffusion,
        "safety_filter": "judges",
        "judges": {"nudenet": {"threshold": 0.6}},
    }


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What is above, for tests, which cannot import it from here."""
    parts = (endpoint, source, picture, Verdict, Painter, Judge, write_images, nocaps_settings, painted_settings)
    return SimpleNamespace(ADDRESS=ADDRESS, SAFE=SAFE, **{part.__name__: part for part in parts})
