"""Settings of trade-off curves: safety against zero-shot accuracy along the scale of what tuning changed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from saferclip.config.base import Distinct, Positive, RunName, Settings
from saferclip.config.data import World
from saferclip.config.evaluation import BudgetSettings, EvaluationSettings

Scale = Annotated[float, Field(gt=0)]


class ValidationSettings(Settings):
    """Sets of the embedded world beside the validation split, of which no test set has a row."""

    zero_shot_images: Positive = Field(description="images in each zero-shot set, at most")
    pairs: Positive = Field(description="pairs drawn as those of NSFW-Caps-mini")
    seed: int = Field(description="of these pairs; not that of the benchmark")


class TradeoffSettings(BudgetSettings):
    """Curves of every method: base weights + scale x (tuned - base weights), for several scales."""

    scales: Distinct[Scale] = Field(description="ascending, 1 (the method itself) among them; 0 is the base model")
    methods: Distinct[RunName] | None = Field(
        None, description="default: all that stay in the base model's space; the untuned one is always there"
    )
    validation: ValidationSettings | None = Field(None, description="default: no curves on validation data")

    @field_validator("scales")
    @classmethod
    def _through_the_method(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if list(scales) != sorted(scales) or 1 not in scales:
            raise ValueError("must ascend, and hold 1, which is the method itself")
        return scales


class TradeoffStep(Settings):
    """What the step tradeoff is given."""

    scales: Distinct[Scale]
    evaluation: EvaluationSettings


class RankingStep(BudgetSettings):
    """What the step tradeoff_ranking is given."""

    bootstrap: Positive
    bootstrap_seed: int


class ValidationSets(World):
    """What the step validation_sets is given; seed and detail are those of the quadruples."""

    zero_shot_images: Positive
