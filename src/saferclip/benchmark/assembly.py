"""Puts a build together from its settings: which sources, editor, illustrator and similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from saferclip import io
from saferclip.benchmark import backends
from saferclip.benchmark.backends import Backends
from saferclip.config import BenchmarkSettings, EndpointSettings, SceneDetail, downloads_of
from saferclip.provenance import digest

Given = TypeVar("Given")


@dataclass(frozen=True)
class Inputs:
    """What a build reads: only that is given which its settings need."""

    detail: SceneDetail | None = None  # of the embedded world's captions
    base_model: Path | None = None
    images: Path | None = None  # the list of the step benchmark_images
    state: Path | None = None  # folder from which an interrupted build goes on
    downloads: Mapping[str, Path] = field(default_factory=dict)


def assemble(settings: BenchmarkSettings, inputs: Inputs) -> Backends:
    """Everything that the settings choose; raises DataError for inputs that are missing or wrong.

    What a source does not need is not imported: the embedded world has no use for a language model's packages.
    """
    sources, editor = _PAIRS[settings.source](settings, inputs)
    illustrator: Any = backends.Unillustrated()
    if settings.image_maker == "icons":
        illustrator = backends.Drawn(settings.candidates)
    elif settings.image_maker == "diffusion":
        illustrator = _painted(settings, inputs)
    return Backends(sources, editor, illustrator, _similarity(settings, inputs))


def _embedded(settings: BenchmarkSettings, inputs: Inputs) -> tuple[Any, Any]:  # noqa: ARG001
    return backends.NovelScenes(_given(inputs.detail, "--detail")), backends.GrammarEditor()


def _release(settings: BenchmarkSettings, inputs: Inputs) -> tuple[Any, Any]:
    from saferclip.benchmark import sources

    assert settings.release is not None  # by the configuration
    rows = sources.release(_downloaded(inputs, settings.release.table), settings.size)
    files = sources.Images.read(_given(inputs.images, "--images"))
    return sources.ReleasedCaptions(rows, files), sources.ReleasedEdits(rows)


def _nocaps(settings: BenchmarkSettings, inputs: Inputs) -> tuple[Any, Any]:
    from saferclip.benchmark import sources

    assert settings.nocaps is not None  # by the configuration
    images = sources.nocaps(settings.nocaps, _downloaded(inputs, settings.nocaps.captions), settings.seed)
    files = sources.Images.read(_given(inputs.images, "--images"))
    return sources.NocapsCaptions(images, files), _language_model_editor(settings, inputs)


_PAIRS: dict[str, Callable[[BenchmarkSettings, Inputs], tuple[Any, Any]]] = {
    "embedded": _embedded,
    "release": _release,
    "nocaps": _nocaps,
}


def _language_model_editor(settings: BenchmarkSettings, inputs: Inputs) -> Any:
    from saferclip.benchmark import chat, prompts
    from saferclip.benchmark.editor import LanguageModelEditor

    asked = settings.language_model
    assert asked is not None  # by the configuration
    version = prompts.load(asked.prompts)
    model: chat.Chat
    if isinstance(asked, EndpointSettings):
        model = chat.Endpoint(asked)
    else:
        folder = _downloaded(inputs, asked.model)
        model = chat.ChatModel(asked, folder, _version(folder))
    remembered = chat.Remembered(model, _given(inputs.state, "--state") / "answers.jsonl")
    return LanguageModelEditor(remembered, version, asked.attempts, settings.seed, settings.max_changed_words)


def _painted(settings: BenchmarkSettings, inputs: Inputs) -> Any:
    from saferclip import diffusion, safety
    from saferclip.benchmark.painting import Painted

    assert settings.diffusion is not None and settings.judges is not None  # by the configuration
    # The batch changes no image. In the datasheet's tables "q16" would be read as a quantile.
    diffused = settings.diffusion.model_dump(mode="json", exclude={"batch_size"}, exclude_none=True)
    judged = settings.judges.model_dump(mode="json", exclude={"q16": {"batch_size"}}, exclude_none=True)
    versions = {name: version for name in _named(settings) if (version := _version(_downloaded(inputs, name)))}
    named = {"nudenet": "NudeNet", "q16": "Q16"}
    identity = {"diffusion": diffused, "judges": {named[name]: section for name, section in judged.items()}}
    return Painted(
        painter=diffusion.load(settings.diffusion, inputs.downloads),
        judge=safety.load(settings.judges, inputs.downloads),
        candidates=settings.candidates,
        batch_size=settings.diffusion.batch_size,
        seed=settings.seed,
        identity={**identity, "versions": versions},
        state=_given(inputs.state, "--state"),
    )


def _named(settings: BenchmarkSettings) -> list[str]:
    """Names of what the images depend on."""
    return sorted({*downloads_of(settings.diffusion), *downloads_of(settings.judges)})


def _similarity(settings: BenchmarkSettings, inputs: Inputs) -> Any:
    from saferclip.benchmark import similarity

    if settings.similarity == "base-model":
        return similarity.BaseModel(_given(inputs.base_model, "--base-model"))
    assert settings.jina_clip is not None  # by the configuration
    return similarity.JinaClip(settings.jina_clip, _downloaded(inputs, settings.jina_clip.model))


def _given(value: Given | None, option: str) -> Given:
    if value is None:
        raise io.DataError(f"{option}: missing; these settings of the benchmark need it")
    return value


def _downloaded(inputs: Inputs, name: str) -> Path:
    return _given(inputs.downloads.get(name), f"--download {name}=PATH")


def _version(path: Path) -> str | None:
    """What tells one version of a download from another: its manifest; None for what the user supplied."""
    manifest = path.with_name(f"{path.name}.json")
    return digest(io.read_json(manifest)) if manifest.is_file() else None
