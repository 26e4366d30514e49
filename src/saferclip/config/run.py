"""A whole run's configuration, and which part of it each step is given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from saferclip.config.base import ConfigError, Distinct, Line, RunName, Settings, downloads_of
from saferclip.config.benchmark import BenchmarkImages, BenchmarkSettings
from saferclip.config.data import (
    DataSettings,
    MiniSets,
    RobustnessSettings,
    RobustnessStep,
    SetSettings,
    SetsStep,
    UnsafeImages,
    VisuText,
)
from saferclip.config.editing import EditedModel, EditSettings
from saferclip.config.evaluation import (
    BudgetSettings,
    CostSettings,
    EvaluationSettings,
    FigureSettings,
    GenerationSettings,
)
from saferclip.config.models import BaseModelSettings, BaseModelTrainingSettings, ExportSettings
from saferclip.config.tools import DownloadSettings
from saferclip.config.tradeoff import RankingStep, TradeoffSettings, TradeoffStep, ValidationSets
from saferclip.config.training import (
    HyperbolicMethod,
    Method,
    MethodSettings,
    MiningSettings,
    OptimisationSettings,
    PublishedModel,
    SelectionSettings,
    TargetRule,
    TargetsStep,
    TrainedMethod,
    TrainingSettings,
)

BY_METHOD = ("targets", "training", "edit", "published_model")  # steps whose settings differ from method to method


class Config(Settings):
    """A whole run."""

    name: RunName = Field(description="outputs go to results/<name>/")
    title: Line = Field(description="how the data set is called in tables and figures")
    seeds: Distinct[int] = Field(description="each trained method is run once with each")
    downloads: DownloadSettings | None = None
    data: DataSettings
    test_sets: SetSettings | None = None
    robustness: RobustnessSettings | None = None
    base_model: BaseModelSettings
    base_model_training: BaseModelTrainingSettings | None = None
    benchmark: BenchmarkSettings | None = None
    mining: MiningSettings
    optimisation: OptimisationSettings
    methods: dict[RunName, Method]
    selection: SelectionSettings
    evaluation: EvaluationSettings
    tradeoff: TradeoffSettings | None = None
    generation: GenerationSettings | None = None
    figures: FigureSettings
    export: ExportSettings | None = None
    costs: CostSettings | None = None

    @field_validator("methods")
    @classmethod
    def _only_clip_untuned(cls, methods: dict[str, Method]) -> dict[str, Method]:
        untuned = [name for name, settings in methods.items() if settings is None]
        if untuned != ["clip"]:
            others = [name for name in untuned if name != "clip"]
            advice = f"; say how these are trained: {', '.join(others)}" if others else ""
            raise ValueError(f"must hold 'clip: {{}}', the untuned model every table compares with{advice}")
        return methods

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; also, ".join(problems))
        return self

    def _contradictions(self) -> Iterable[str]:
        """Sections that are right in themselves but do not go together."""
        if "nsfw_caps" in self.evaluation.benchmarks and self.benchmark is None:
            yield "evaluation.benchmarks names 'nsfw_caps', so the section 'benchmark' must be given"
        yield from self._contradictions_of_sets({"gallery", "zero_shot", "probes"} & set(self.evaluation.benchmarks))
        yield from self._contradictions_of_robustness()
        drawn = self.benchmark is not None and self.benchmark.source == "embedded"
        if self.data.source != "embedded" and drawn and "nsfw_caps" in self.evaluation.benchmarks:
            yield (
                "evaluation.benchmarks names ['nsfw_caps'], which benchmark.source 'embedded' draws in the embedded "
                f"world; leave it out where data.source is '{self.data.source}', or set benchmark.source to 'release' "
                "or 'nocaps'"
            )
        visu = self.data.visu if self.data.source == "visu" else None
        if visu and visu.unsafe_images is None and visu.missing_images == "refuse":
            yield (
                "data.visu.unsafe_images is not given, so that all unsafe images are withheld; set "
                "data.visu.missing_images to 'keep' to use rows for their captions, or have the images made"
            )
        if self.downloads is None and (names := downloads_of(self)):
            yield f"{names[0]} is to be downloaded, so the section 'downloads' must be given"
        yield from self._contradictions_of_curves()
        yield from self._contradictions_of_generation()
        for method, seeds in (self.figures.runs or {}).items():
            if method not in self.methods or not set(seeds) <= set(self.seeds_of(method)):
                yield f"figures.runs names '{method}' with seeds {list(seeds)}, which this run does not have"
        if differences := self.figures.differences:
            named = (differences.reference, *(name for names in differences.groups.values() for name in names))
            for method in named:
                if method not in self.methods:
                    yield f"figures.differences names '{method}', which is no method of this run"
        for method in self.selection.edits or {}:
            try:
                self.edit_candidates(method)
            except ConfigError as error:
                yield str(error)

    def _contradictions_of_sets(self, named: set[str]) -> Iterable[str]:
        """Benchmarks that need test sets which this run does not have or cannot draw."""
        if not named:
            return
        if self.test_sets is None:
            yield f"evaluation.benchmarks names {sorted(named)}, so the section 'test_sets' must be given"
        elif self.test_sets.source == "embedded" and self.data.source != "embedded":
            yield (
                f"evaluation.benchmarks names {sorted(named)}, which test_sets.source 'embedded' draws in the embedded "
                f"world; leave them out where data.source is '{self.data.source}', or set test_sets.source to 'public'"
            )
        elif missing := sorted(named - self.test_sets.benchmarks):
            if self.test_sets.source == "embedded":
                yield f"evaluation.benchmarks names {missing}, so test_sets.embedded.probe_images must be given"
            else:
                yield f"evaluation.benchmarks names {missing}, for which test_sets.public names no sets"

    def _contradictions_of_robustness(self) -> Iterable[str]:
        """Variants that are measured but not made, or that only the embedded world can make."""
        if "robustness" not in self.evaluation.benchmarks:
            return
        if self.robustness is None:
            yield "evaluation.benchmarks names 'robustness', so the section 'robustness' must be given"
        elif self.robustness.source == "embedded" and self.data.source != "embedded":
            yield (
                "evaluation.benchmarks names 'robustness', which robustness.source 'embedded' words and draws in the "
                f"embedded world; set it to 'captions' where data.source is '{self.data.source}'"
            )

    def _contradictions_of_curves(self) -> Iterable[str]:
        """Trade-off curves need both axes, methods of this run, and, on validation data, the embedded world."""
        if self.tradeoff is None:
            return
        if not {"test", "zero_shot"} <= set(self.evaluation.benchmarks):
            yield "the section 'tradeoff' is given, so evaluation.benchmarks must name 'test' and 'zero_shot'"
        if unknown := [name for name in self.tradeoff.methods or () if name not in self._between]:
            yield f"tradeoff.methods names {unknown}, which this run does not tune, or not in CLIP's space"
        if self.tradeoff.validation:
            drawn = [section and section.source for section in (self.data, self.test_sets, self.benchmark)]
            if drawn != ["embedded"] * 3:
                yield (
                    "tradeoff.validation draws sets of the embedded world; leave it out unless data.source, "
                    "test_sets.source and benchmark.source are 'embedded'"
                )
            elif self.benchmark and self.tradeoff.validation.seed == self.benchmark.seed:
                yield "tradeoff.validation.seed is that of the benchmark, whose pairs are test data; choose another"

    def _contradictions_of_generation(self) -> Iterable[str]:
        """LLaVA reads the states of a vision tower in transformers' format, which a model in another space lacks."""
        asked = self.generation and self.generation.image_to_text
        elsewhere = [name for name, settings in self.methods.items() if isinstance(settings, HyperbolicMethod)]
        if asked and elsewhere:
            yield (
                f"generation.image_to_text needs models that transformers can express, which {elsewhere} are not, with "
                "geometry 'hyperbolic'; leave out one or the other"
            )

    def training(self, method: str) -> TrainingSettings:
        """Settings of one method's training; raises ConfigError for one that is not trained here."""
        settings, optimisation = self._trained_method(method), self.optimisation
        if isinstance(settings, MethodSettings) and settings.lora:
            lora = optimisation.lora.model_copy(update=settings.lora.given)
            optimisation = optimisation.model_copy(update={"lora": lora})
        return TrainingSettings(optimisation=optimisation, method=settings)

    def _trained_method(self, method: str) -> MethodSettings | HyperbolicMethod:
        settings = self.methods.get(method)
        if not isinstance(settings, TrainedMethod):
            raise ConfigError(f"method '{method}' is not trained; choose one of: {', '.join(self.trained)}")
        return settings

    def targets(self, method: str) -> TargetsStep | None:
        """The search for a method's targets, where they are neither the pair nor the paper's nearest.

        Raises ConfigError for a method that is not trained.
        """
        rule = self._trained_method(method).targets
        return TargetsStep(block_size=self.mining.block_size, targets=rule) if isinstance(rule, TargetRule) else None

    @property
    def target_rules(self) -> dict[str, str]:
        """Names of the target rules that methods ask for, each with one of these methods."""
        steps = {method: self.targets(method) for method in self.trained}
        return {step.targets.name: method for method, step in steps.items() if step}

    def edit(self, method: str) -> EditSettings:
        """Settings of one method's edit; raises ConfigError for a method that is none."""
        settings = self.methods.get(method)
        if not isinstance(settings, EditedModel):
            raise ConfigError(f"method '{method}' is not an edit; write 'edit: {{kind: ...}}' for one")
        return EditSettings(edit=settings.edit, batch_size=self.mining.batch_size)

    def edit_candidates(self, method: str) -> list[EditSettings]:
        """An edit with each combination of the values in ``selection.edits``, in a stable order; as it is without any.

        Raises ConfigError for a method that is no edit, and for values that its settings cannot have.
        """
        settings, grid = self.edit(method), (self.selection.edits or {}).get(method, {})
        combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        try:
            return [
                EditSettings.model_validate(settings.model_dump() | {"edit": settings.edit.model_dump() | chosen})
                for chosen in combinations
            ]
        except ValidationError as error:
            problem = error.errors()[0]
            raise ConfigError(f"selection.edits.{method}.{problem['loc'][-1]}: {problem['msg']}") from error

    def published(self, method: str) -> BaseModelSettings:
        """Where a published model comes from; raises ConfigError for a method that is none."""
        settings = self.methods.get(method)
        if not isinstance(settings, PublishedModel):
            raise ConfigError(f"method '{method}' is not a published model; write 'weights: {{source: ...}}' for one")
        return settings.weights

    @property
    def trained(self) -> list[str]:
        """Methods that this run trains: neither the untuned model nor published or edited ones."""
        return [name for name, settings in self.methods.items() if isinstance(settings, TrainedMethod)]

    @property
    def edited(self) -> list[str]:
        """Methods whose weights are computed without training."""
        return [name for name, settings in self.methods.items() if isinstance(settings, EditedModel)]

    def figure_settings(self) -> FigureSettings:
        """What figures and tables depend on: their section, with the run's title, methods and seeds filled in."""
        runs = self.figures.runs or {method: self.seeds_of(method) for method in self.methods}
        curves = self.figures.tradeoff or (self.tradeoff and BudgetSettings(budgets=self.tradeoff.budgets))
        known = {"title": self.figures.title or self.title, "runs": runs, "tradeoff": curves}
        return self.figures.model_copy(update=known)

    def export_settings(self) -> ExportSettings:
        """What an export depends on: its section, with the run's title and base model filled in."""
        settings = self.export or ExportSettings.model_validate({})
        known = {"title": settings.title or self.title, "base_model": settings.base_model or self.base_model.source}
        return settings.model_copy(update=known)

    def section(self, step: str, method: str | None = None) -> Settings:
        """The settings of one step.

        Raises ConfigError for a step that does not exist or that this run does not have.
        """
        embedded = self.data.embedded
        sections: dict[str, Settings | None] = {
            "data": self._data_step(),
            "unsafe_images": self._unsafe_images(),
            "test_sets": self._sets_step(),
            "robustness": self._robustness_step(),
            "base_model_training": self.base_model_training,
            "base_model": self.base_model,
            "published_model": self.published(method) if method and step == "published_model" else None,
            "benchmark": self.benchmark,
            "benchmark_images": self._benchmark_images(),
            "scene_detail": embedded.detail if embedded else None,
            "embedding": self.mining,
            "mining": self.mining,
            "targets": self.targets(method) if method and step == "targets" else None,
            "training": self.training(method) if method and step == "training" else None,
            "edit": self.edit(method) if method and step == "edit" else None,
            "evaluation": self.evaluation,
            "tradeoff": self._tradeoff_step(),
            "tradeoff_ranking": self._ranking_step(),
            "validation_sets": self._validation_sets(),
            "validation_benchmark": self._validation_benchmark(),
            "export": self.export_settings(),
            "text_to_image": self.generation and self.generation.text_to_image,
            "image_to_text": self.generation and self.generation.image_to_text,
            "figure": self.figure_settings(),
            "table": self.figure_settings(),
        }
        if step not in sections:
            raise ConfigError(f"there is no step '{step}'; choose one of: {', '.join(sections)}")
        section = sections[step]
        if section is None:
            missing = "name a method" if step in BY_METHOD and not method else f"'{self.name}' has no settings for it"
            raise ConfigError(f"step '{step}': {missing}")
        return section

    def settings_of(self, step: str, method: str | None = None) -> str:
        """The settings of one step as JSON, in one form whatever the file's notation was; raises as ``section``."""
        return json.dumps(self.section(step, method).model_dump(mode="json"), sort_keys=True)

    def downloads_of(self, step: str, method: str | None = None) -> dict[str, Path]:
        """What a step needs from elsewhere: name in ``downloads.table`` to the place on disk."""
        names = downloads_of(self.section(step, method))
        return {name: self.downloads.path(name) for name in names} if self.downloads else {}

    def _sets_step(self) -> SetsStep | None:
        if self.test_sets is None:
            return None
        if self.test_sets.source == "public":
            return SetsStep(public=self.test_sets.public)
        if self.data.embedded is None or self.test_sets.embedded is None:
            return None
        world, sizes = self.data.embedded, self.test_sets.embedded
        return SetsStep(embedded=MiniSets(seed=world.seed, detail=world.detail, **sizes.model_dump()))

    def _robustness_step(self) -> RobustnessStep | None:
        section, world = self.robustness, self.data.embedded
        sizes = section.model_dump(include={"queries", "typos"}) if section else {}
        if section and section.seed is not None:
            return RobustnessStep(seed=section.seed, **sizes)
        if not section or not world:
            return None
        return RobustnessStep(seed=world.seed, detail=world.detail, unseen=world.unseen, **sizes)

    @property
    def curves(self) -> list[str]:
        """Methods that have a trade-off curve; the untuned one, where all of them start, first."""
        if self.tradeoff is None:
            return []
        untuned = [name for name, settings in self.methods.items() if settings is None]
        return untuned + [name for name in self._between if name in (self.tradeoff.methods or self._between)]

    @property
    def _between(self) -> list[str]:
        """Tuned methods whose models have the base model's weights, by name and shape."""
        others = (type(None), HyperbolicMethod)
        return [name for name, settings in self.methods.items() if not isinstance(settings, others)]

    def _tradeoff_step(self) -> TradeoffStep | None:
        if self.tradeoff is None:
            return None
        swept = tuple(name for name in ("test", "nsfw_caps", "zero_shot") if name in self.evaluation.benchmarks)
        evaluation = self.evaluation.model_copy(update={"benchmarks": swept})
        return TradeoffStep(scales=self.tradeoff.scales, evaluation=evaluation)

    def _ranking_step(self) -> RankingStep | None:
        known = {name: getattr(self.evaluation, name) for name in ("bootstrap", "bootstrap_seed")}
        return RankingStep(budgets=self.tradeoff.budgets, **known) if self.tradeoff else None

    def _validation_sets(self) -> ValidationSets | None:
        world, sizes = self.data.embedded, self.tradeoff and self.tradeoff.validation
        if world is None or not sizes:
            return None
        return ValidationSets(seed=world.seed, detail=world.detail, zero_shot_images=sizes.zero_shot_images)

    def _validation_benchmark(self) -> BenchmarkSettings | None:
        sizes = self.tradeoff and self.tradeoff.validation
        if self.benchmark is None or not sizes:
            return None
        return self.benchmark.model_copy(update={"size": sizes.pairs, "seed": sizes.seed})

    def _benchmark_images(self) -> BenchmarkImages | None:
        if self.benchmark is None or self.benchmark.source == "embedded":
            return None
        chosen = {self.benchmark.source: getattr(self.benchmark, self.benchmark.source)}
        return BenchmarkImages(size=self.benchmark.size, seed=self.benchmark.seed, **chosen)

    def _data_step(self) -> DataSettings:
        """Without how unsafe images are made: the step that makes them is given that."""
        if self.data.visu is None:
            return self.data
        return self.data.model_copy(update={"visu": self.data.visu.model_copy(update={"unsafe_images": None})})

    def _unsafe_images(self) -> UnsafeImages | None:
        visu = self.data.visu
        if self.data.source != "visu" or visu is None or visu.unsafe_images is None:
            return None
        # By field, not by value, or nested sections would lose which of their fields were given.
        captions = {name: getattr(visu, name) for name in VisuText.model_fields}
        return UnsafeImages(**captions, **dict(visu.unsafe_images))

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Seeds that a method is run with: one that is not trained here has nothing to repeat."""
        return self.seeds if method in self.trained else self.seeds[:1]
