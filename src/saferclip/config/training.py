"""Settings of mining and fine-tuning; a method is one of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from saferclip.config.base import Distinct, Positive, RunName, Settings, Share, Some
from saferclip.config.editing import EDITS, EditedModel
from saferclip.config.models import BaseModelSettings


class ApproximateSettings(Settings):
    """How well an approximate index has to search; it needs faiss."""

    recall: float = Field(gt=0, lt=1, description="share of a sample of captions that must find their true nearest")
    sample: Positive = Field(description="captions searched exactly, to tune the index, and as many to check it")


class MiningSettings(Settings):
    """How the frozen embeddings are computed and searched; only what ``approximate`` misses changes a result."""

    block_size: Positive = Field(description="rows of one similarity block; memory is its square")
    batch_size: Positive = Field(description="inputs encoded at once")
    approximate: ApproximateSettings | None = Field(
        default=None, description="an index for millions of captions; left out: the search is exact"
    )
    pixels: Literal["file"] | None = Field(
        default=None,
        description="decoded images are put in a file, once for all trainings; left out: each has them in its memory",
    )


class LoraSettings(Settings):
    """Low-rank adapters, in PEFT's terms."""

    rank: Positive
    alpha: float = Field(gt=0)
    dropout: Share
    target_modules: str = Field(description="regular expression over open_clip module names")
    encoders: Distinct[Literal["text", "image"]] | None = Field(
        None, description="encoders that it selects modules in, the other one staying as it is; default: both"
    )


class LoraChanges(Settings):
    """What a method's adapters have otherwise than ``optimisation.lora``; left out: nothing."""

    rank: Positive | None = None
    alpha: float | None = Field(None, gt=0)
    dropout: Share | None = None
    target_modules: str | None = None
    encoders: Distinct[Literal["text", "image"]] | None = None

    @model_validator(mode="after")
    def _some_change(self) -> LoraChanges:
        if not self.given:
            raise ValueError(f"empty; write at least one of: {', '.join(type(self).model_fields)}")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are changed."""
        return self.model_dump(exclude_none=True)


class OptimisationSettings(Settings):
    """Shared by every method, so that methods differ in method only."""

    epochs: Positive
    batch_size: Positive = Field(description="quadruples in one optimizer step")
    accumulation: Positive = Field(description="micro-batches that one optimizer step is split into")
    max_gradient_norm: float = Field(gt=0)
    precision: Literal["bf16", "fp32"]
    logit_scale: Literal["base-model"] | Annotated[float, Field(gt=0)] = Field(
        description="factor of cosines in contrastive terms: a number, or the base model's own (OpenAI's: 100)"
    )
    lora: LoraSettings


class LossWeights(Settings):
    """Weights of the loss's terms; they are normalised to sum 1.

    *preservation* terms act on safe inputs, *redirection* terms on unsafe ones; *cross* terms
    compare with the other modality's frozen embeddings.  Below these eight are the terms of other methods, which are
    not computed unless they have a weight.
    """

    preservation_text: float = Field(ge=0)
    preservation_image: float = Field(ge=0)
    preservation_cross_text: float = Field(ge=0)
    preservation_cross_image: float = Field(ge=0)
    redirection_text: float = Field(ge=0)
    redirection_image: float = Field(ge=0)
    redirection_cross_text: float = Field(ge=0)
    redirection_cross_image: float = Field(ge=0)
    spread_text: float | None = Field(None, ge=0, description="SAGE: safe captions do not contract")
    spread_image: float | None = Field(None, ge=0, description="the same for safe images")
    neighbourhood_text: float | None = Field(None, ge=0, description="SAGE: near safe captions keep their similarities")
    neighbourhood_image: float | None = Field(None, ge=0, description="the same for safe images")
    causal_text: float | None = Field(None, ge=0, description="CET: joint prediction of a safe caption's image")
    causal_image: float | None = Field(None, ge=0, description="the same of a safe image's caption")
    similarity_text: float | None = Field(None, ge=0, description="safe captions keep their similarities to images")
    similarity_image: float | None = Field(None, ge=0, description="safe images keep theirs to captions")
    kept_text: float | None = Field(None, ge=0, description="ShieldCLIP: safe captions in an unsafe place stay")
    kept_image: float | None = Field(None, ge=0, description="the same for images")
    kept_cross_text: float | None = Field(None, ge=0, description="ShieldCLIP: two of them stay aligned")
    kept_cross_image: float | None = Field(None, ge=0, description="the same for images")
    mixed_text: float | None = Field(None, ge=0, description="ShieldCLIP: unsafe captions follow a safe image")
    mixed_image: float | None = Field(None, ge=0, description="unsafe images follow a safe caption")
    coherence: float | None = Field(None, ge=0, description="ShieldCLIP: an unsafe pair stays together")

    @model_validator(mode="after")
    def _some_weight(self) -> LossWeights:
        if sum(self.given.values()) == 0:
            raise ValueError("at least one weight must be above 0")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The weights that are not left out, by term."""
        return self.model_dump(exclude_none=True)


class NeighbourhoodSettings(Settings):
    """SAGE's local structure alignment: which similarities are kept."""

    neighbours: Positive = Field(description="nearest rows of a row, in the micro-batch and under the frozen model")
    shift: float = Field(ge=0, description="how far embeddings are moved along the unsafe direction first")


class CausalSettings(Settings):
    """Causal effect tuning: with whose predictions a row's own is joined."""

    neighbours: Positive = Field(description="nearest rows of a row, in the micro-batch and under the frozen model")
    similarity: float = Field(ge=-1, le=1, description="cosine below which a row is no neighbour")
    own_share: float = Field(gt=0, le=1, description="weight of the row's own prediction in the joint one")


class MarginSettings(Settings):
    """By how much an unsafe input is to be nearer to its target than to its unsafe partner."""

    margin: float = Field(ge=0, description="difference of cosines")
    scale: float = Field(gt=0, description="how soon the loss ends beyond the margin; far below it, its slope is 1")


class MaskSettings(Settings):
    """Regularized mask tuning (R-AMT): weights are switched off instead of adapted."""

    kind: Literal["mask"]
    target_modules: str = Field(description="regular expression over open_clip module names; both encoders")
    initial: float = Field(description="score that every weight begins with")
    threshold: float = Field(description="a weight is kept while its score is above")
    penalty: float = Field(ge=0, description="factor of the norm of each weight's scores, which is added to the loss")
    gradient_dropout: Share = Field(
        description="by how much gradients that contradict general knowledge are reduced, where chance says so"
    )

    @model_validator(mode="after")
    def _all_kept_at_first(self) -> MaskSettings:
        if self.initial <= self.threshold:
            raise ValueError("'initial' must be above 'threshold', so that training begins with the untuned model")
        return self


class TargetRule(Settings):
    """How unsafe inputs get their targets, where neither the pair nor the paper's nearest is asked for."""

    rule: Literal["random", "text", "image", "both"] = Field(
        description="which safe item: any, or the nearest one by the frozen cosine of captions, of images, or both"
    )
    neighbours: Positive | None = Field(
        None, description="nearest items whose mean, of unit length, is the target; default: the nearest alone"
    )
    pool: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the safe items, drawn once, that can be targets; default: all"
    )
    seed: int | None = Field(None, description="of what is drawn: random targets, a pool; all seeds of a run share it")

    @model_validator(mode="after")
    def _usable(self) -> TargetRule:
        if self.rule == "random" and self.neighbours is not None:
            raise ValueError("'neighbours' are the nearest, which rule 'random' does not look for; leave it out")
        drawn = self.rule == "random" or self.pool is not None
        if drawn and self.seed is None:
            raise ValueError("a 'seed' must be given where targets or their pool are drawn")
        if not drawn and self.seed is not None:
            raise ValueError("nothing is drawn, so 'seed' would have no effect; leave it out")
        return self

    @property
    def name(self) -> str:
        """What its results are called: ``both``, ``text-4``, ``text-pool-0.1-seed-0``."""
        parts: list[object] = [self.rule]
        parts += [self.neighbours] if self.neighbours else []
        parts += ["pool", f"{self.pool:g}"] if self.pool else []
        parts += ["seed", self.seed] if self.seed is not None else []
        return "-".join(map(str, parts))


class TargetsStep(Settings):
    """What the targets of one rule depend on."""

    block_size: Positive
    targets: TargetRule


def _kind_of_targets(value: Any) -> str:
    return "(rule)" if isinstance(value, dict | TargetRule) else "(named)"


Targets = Annotated[
    Annotated[Literal["paired", "nearest"], Tag("(named)")] | Annotated[TargetRule, Tag("(rule)")],
    Discriminator(_kind_of_targets),
]


class TrainedMethod(Settings):
    """What all ways of fine-tuning have in common."""

    curriculum: Literal["none", "progressive", "reversed"]
    learning_rate: float = Field(gt=0)


class MethodSettings(TrainedMethod):
    """One way of fine-tuning; ``methods`` in the config maps names to these."""

    targets: Targets = Field(description="the paired safe item, the paper's nearest, or a rule of one's own")
    cross_modal: Literal["infonce", "relative", "margin"]
    weights: LossWeights
    tuner: MaskSettings | None = Field(None, description="what is trained; default: adapters, by optimisation.lora")
    lora: LoraChanges | None = Field(None, description="changes of optimisation.lora for this method alone")
    margin: MarginSettings | None = Field(None, description="of cross_modal 'margin'")
    labels: Literal["heed"] | None = Field(
        None, description="whether redirected is only what its label calls unsafe; left out: what stands as unsafe"
    )
    neighbourhood: NeighbourhoodSettings | None = Field(None, description="of the terms neighbourhood_*")
    causal: CausalSettings | None = Field(None, description="of the terms causal_*")

    @model_validator(mode="after")
    def _settings_of_terms(self) -> MethodSettings:
        for section in ("neighbourhood", "causal"):
            names = [f"{section}_{modality}" for modality in ("text", "image")]
            weighty = [name for name in names if self.weights.given.get(name, 0) > 0]
            if weighty and getattr(self, section) is None:
                raise ValueError(f"weights.{weighty[0]} is above 0, so the section '{section}' must be given")
        if self.lora and self.tuner:
            raise ValueError("a 'tuner' takes the place of adapters, so 'lora' would have no effect; leave it out")
        if self.cross_modal == "margin" and self.margin is None:
            raise ValueError("cross_modal is 'margin', so the section 'margin' must be given")
        of_labels = [name for name in self.weights.given if name.startswith(("kept_", "mixed_"))]
        if self.labels is None and any(self.weights.given[name] for name in of_labels):
            raise ValueError(f"weights.{of_labels[0]} is about safe items in unsafe places: set 'labels' to 'heed'")
        return self


class HyperbolicSettings(Settings):
    """Hyperbolic space in the Lorentz model, into which both encoders embed."""

    kind: Literal["hyperbolic"]
    curvature: float = Field(gt=0, description="at first; it is learnt, within a tenth and ten times of this")
    aperture_scale: float = Field(gt=0, description="factor of the half aperture of entailment cones")
    largest: float = Field(gt=0, le=8, description="highest distance from the root, times the root of curvature")
    safe_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="queries farther from the root than this share of safe inputs of the validation split are moved "
        "toward it; null: none are"
    )


class HyperbolicWeights(Settings):
    """Weights of the terms in hyperbolic space; they are normalised to sum 1.

    *contrast* terms bring captions and images of one row together: both safe, both unsafe, and the mixed pairs by what
    is safe in them. *entailment* terms keep the second in the cone of the first: safe caption and image, unsafe caption
    and image, and, for *safety*, safe image and unsafe caption.
    """

    contrast_safe: float = Field(ge=0)
    contrast_unsafe: float = Field(ge=0)
    contrast_safe_text: float = Field(ge=0)
    contrast_safe_image: float = Field(ge=0)
    entailment_safe: float = Field(ge=0)
    entailment_unsafe: float = Field(ge=0)
    entailment_safety: float = Field(ge=0)

    @model_validator(mode="after")
    def _some_weight(self) -> HyperbolicWeights:
        if sum(self.given.values()) == 0:
            raise ValueError("at least one weight must be above 0")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The weights by term."""
        return self.model_dump()


class HyperbolicMethod(TrainedMethod):
    """Fine-tuning into hyperbolic space, with terms of its own that compare paired inputs (HySAC)."""

    targets: ClassVar[Literal["paired"]] = "paired"
    cross_modal: ClassVar[Literal["infonce"]] = "infonce"  # of terms that it does not have
    tuner: ClassVar[None] = None  # adapters
    labels: ClassVar[None] = None  # every unsafe place is taken for unsafe
    geometry: HyperbolicSettings
    weights: HyperbolicWeights


class PublishedModel(Settings):
    """A model that others have tuned: evaluated as it is, beside those that this run trains."""

    weights: BaseModelSettings


# Stand in the places of errors, never in a configuration.
KINDS_OF_METHOD: dict[str, type[Settings]] = {
    "(trained)": MethodSettings,
    "(hyperbolic)": HyperbolicMethod,
    "(published)": PublishedModel,
    "(edited)": EditedModel,
    **{f"({kind})": section for kind, section in EDITS.items()},
    **{"(rule)": TargetRule, "(named)": Settings},  # of its targets
}


def _kind_of_method(value: Any) -> str:
    """Which kind a method is meant to be: losses have weights, and so have models, but these have a source."""
    if isinstance(value, EditedModel) or (isinstance(value, dict) and "edit" in value):
        return "(edited)"
    if isinstance(value, HyperbolicMethod) or (isinstance(value, dict) and "geometry" in value):
        return "(hyperbolic)"
    weights = value.get("weights") if isinstance(value, dict) else getattr(value, "weights", None)
    published = "source" in weights if isinstance(weights, dict) else isinstance(weights, BaseModelSettings)
    return "(published)" if published else "(trained)"


# DESIGN: `clip: {}` reads as "CLIP, with nothing done to it".
Method = Annotated[
    Annotated[
        Annotated[MethodSettings, Tag("(trained)")]
        | Annotated[HyperbolicMethod, Tag("(hyperbolic)")]
        | Annotated[PublishedModel, Tag("(published)")]
        | Annotated[EditedModel, Tag("(edited)")],
        Discriminator(_kind_of_method),
    ]
    | None,
    BeforeValidator(lambda value: None if value == {} else value),
]


class TrainingSettings(Settings):
    """All that one training run may depend on, besides its input files and its seed."""

    optimisation: OptimisationSettings
    method: Annotated[
        Annotated[MethodSettings, Tag("(trained)")] | Annotated[HyperbolicMethod, Tag("(hyperbolic)")],
        Discriminator(_kind_of_method),
    ]


class SelectionSettings(Settings):
    """The one rule by which learning rates, and the settings of edits, are chosen: the same for every method."""

    learning_rates: Distinct[Annotated[float, Field(gt=0)]]
    seed: int
    edits: dict[RunName, dict[str, Some[int | float | str]]] | None = Field(
        None, description="values to try of an edit's settings, by method and setting, in all combinations"
    )
