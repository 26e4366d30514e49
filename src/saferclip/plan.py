"""What a run will take before it has started: GPU hours and disk, from its settings and assumed unit costs.

An estimate for people, printed when a run with a section ``costs`` begins; no step depends on it.  It is an
upper bound where filters decide (every candidate image is counted).  Edits of weights, minutes each, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from saferclip import downloads
from saferclip.config import Config, ConfigError, CostSettings, TrainedMethod, downloads_of


class Step(NamedTuple):
    """What one step, or one group of steps, takes."""

    name: str
    work: str
    gpu_hours: float = 0.0
    gigabytes: float = 0.0


def describe(config: Config) -> str:
    """The estimate as a table in plain text, with its total; raises ConfigError without ``costs``."""
    found = steps(config)
    total = Step("total", "", sum(step.gpu_hours for step in found), sum(step.gigabytes for step in found))
    width = max(len(step.work) for step in found)
    lines = [f"Estimate for the whole of '{config.name}', on one {_costs(config).gpu} (config, section costs):"]
    for step in (*found, total):
        lines.append(f"  {step.name:<15} {step.work:<{width}} {step.gpu_hours:>9.1f} GPU h {step.gigabytes:>8.1f} GB")
    return "\n".join(lines)


def steps(config: Config) -> list[Step]:
    """The steps that take GPU time or disk, in the workflow's order; raises ConfigError without ``costs``."""
    sizes = _Sizes(config, _costs(config))
    return [step for part in PARTS for step in part(sizes)]


def _costs(config: Config) -> CostSettings:
    if config.costs is None:
        raise ConfigError("there is no estimate without the section 'costs', which says what a unit of work costs")
    return config.costs


class _Sizes:
    """How much there is of everything."""

    def __init__(self, config: Config, costs: CostSettings) -> None:
        self.config = config
        self.costs = costs
        visu = config.data.visu
        limit = visu.limit if visu and visu.limit else max(costs.train_rows, costs.held_out_rows)
        self.train = min(costs.train_rows, limit)
        self.held_out = min(costs.held_out_rows, limit)
        self.benchmark = config.benchmark.size if config.benchmark else 0
        methods = config.methods.values()
        self.trainings = sum(isinstance(method, TrainedMethod) for method in methods) * len(config.seeds)
        self.models = sum(len(config.seeds_of(method)) for method in config.methods)

    @property
    def images(self) -> int:
        """Images of the quadruples."""
        return 2 * (self.train + 2 * self.held_out)

    @property
    def measured(self) -> int:
        """Images that a model is measured on, but for galleries: quadruples and public zero-shot sets."""
        public = self.config.test_sets and self.config.test_sets.public
        sources = (public.zero_shot or {}).values() if public else ()
        zero_shot = sum(source.limit or self.costs.zero_shot_images for source in sources)
        return 2 * (self.held_out + self.benchmark) + zero_shot

    def encoding(self, images: float) -> float:
        """Hours to encode images, and captions beside them."""
        return images / self.costs.encoded_per_second / 3600

    def gigabytes(self, images: float) -> float:
        """Size of images in a table."""
        return images * self.costs.image_megabytes / 1000


def _downloads(sizes: _Sizes) -> Iterator[Step]:
    config = sizes.config
    if config.downloads is None:
        return
    rows = downloads.read_table(config.downloads.table)
    names = [name for name in downloads_of(config) if name not in config.downloads.local]
    known = {name: rows[name].bytes for name in names if name in rows}
    size = sum((known.get(name) or 0) / 1e9 or sizes.costs.download_gigabytes.get(name, 0) for name in names)
    unknown = [name for name in names if not known.get(name) and name not in sizes.costs.download_gigabytes]
    yield Step("download", f"{len(names)} sources" + (f", {len(unknown)} of unknown size" if unknown else ""), 0, size)


def _unsafe_images(sizes: _Sizes) -> Iterator[Step]:
    section = sizes.config.data.visu and sizes.config.data.visu.unsafe_images
    if section:
        prompts = sizes.images // 2
        hours = prompts * section.candidates * sizes.costs.seconds_per_unsafe_image / 3600
        work = f"{prompts:,} captions, {section.candidates} candidates, {section.shards} jobs"
        yield Step("unsafe_images", work, hours, sizes.gigabytes(prompts))


def _data(sizes: _Sizes) -> Iterator[Step]:
    yield Step("data", f"{sizes.images // 2:,} quadruples", 0, sizes.gigabytes(sizes.images))


def _benchmark(sizes: _Sizes) -> Iterator[Step]:
    section = sizes.config.benchmark
    if section and section.image_maker == "diffusion":
        hours = section.size * section.candidates * sizes.costs.seconds_per_unsafe_image / 3600
        local = section.editor == "transformers"
        hours += section.size * sizes.costs.seconds_per_edit / 3600 if local else 0
        work = f"{section.size:,} pairs, {section.candidates} candidates"
        yield Step("benchmark", work, hours, sizes.gigabytes(2 * section.size))


def _embedding(sizes: _Sizes) -> Iterator[Step]:
    images = 2 * (sizes.train + sizes.held_out)
    kept = images if sizes.config.mining.pixels == "file" else 0
    size = kept * sizes.costs.pixels_megabytes / 1000
    yield Step("embedding", f"{images:,} images", sizes.encoding(images), size)


def _training(sizes: _Sizes) -> Iterator[Step]:
    epochs = sizes.config.optimisation.epochs
    hours = sizes.trainings * epochs * sizes.train / sizes.costs.trained_per_second / 3600
    work = f"{sizes.trainings} trainings of {epochs} epochs"
    yield Step("training", work, hours, sizes.trainings * sizes.costs.model_gigabytes)


def _evaluation(sizes: _Sizes) -> Iterator[Step]:
    sets = sizes.config.test_sets and sizes.config.test_sets.public
    images = sizes.measured
    if sets:
        images += len(sets.galleries or {}) * sets.gallery_unsafe * (1 + sets.gallery_safe_ratio)
    hours = sizes.models * sizes.encoding(images)
    yield Step("evaluation", f"{sizes.models} models, {images:,} images each", hours, sizes.gigabytes(images))


def _tradeoff(sizes: _Sizes) -> Iterator[Step]:
    config = sizes.config
    if config.tradeoff:
        tuned = [method for method in config.curves if config.methods[method] is not None]
        models, scales = sum(len(config.seeds_of(method)) for method in tuned), len(config.tradeoff.scales)
        work = f"{models} models at {scales} scales, {sizes.measured:,} images each"
        yield Step("tradeoff", work, models * scales * sizes.encoding(sizes.measured))


def _generation(sizes: _Sizes) -> Iterator[Step]:
    section, costs = sizes.config.generation, sizes.costs
    methods = len(sizes.config.methods)
    if section and section.text_to_image:
        drawn = section.text_to_image
        prompts = (drawn.limit or costs.prompts) * drawn.images_per_prompt * len(drawn.guidance)
        hours = methods * prompts * costs.seconds_per_image / 3600
        yield Step("text_to_image", f"{methods} methods, {prompts:,} images each", hours)
    if section and section.image_to_text:
        asked = section.image_to_text
        images = asked.test_images + len(asked.folders) * asked.folder_images
        answers = images * len(asked.questions)
        hours = methods * answers * costs.seconds_per_answer / 3600
        yield Step("image_to_text", f"{methods} methods, {answers:,} answers each", hours)


PARTS = (
    _downloads,
    _unsafe_images,
    _data,
    _benchmark,
    _embedding,
    _training,
    _evaluation,
    _tradeoff,
    _generation,
)
