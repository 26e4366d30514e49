"""Settings of methods whose weights are computed, not trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from saferclip.config.base import Positive, Settings, Share


class UwmSettings(Settings):
    """Unsafe Weights Manipulation: weights that carry more for unsafe than for safe inputs are multiplied by a factor.

    ``sparsity`` is the source's word and the share of a layer's score that is left alone.
    """

    kind: Literal["uwm"]
    calibration: Positive = Field(description="training quadruples that weights are scored with, at most")
    text_modules: str = Field(description="regular expression over open_clip module names of the text encoder")
    image_modules: str = Field(description="regular expression over open_clip module names of the image encoder")
    text_sparsity: Share = Field(description="of each layer's score, the share of the weights that are kept")
    image_sparsity: Share = Field(description="as text_sparsity, in the image encoder")
    factor: float = Field(description="what chosen weights are multiplied by; -1 negates them, 0 prunes them")


class ProjectionSettings(Settings):
    """Projection: directions in which unsafe embeddings differ from their safe partners are removed from the output."""

    kind: Literal["projection"]
    rank: Positive = Field(description="directions that are removed")
    subspace: Literal["shared", "own"] = Field(
        description="'shared': both encoders lose the same directions; 'own': each those of its modality"
    )


EDITS: dict[str, type[Settings]] = {"uwm": UwmSettings, "projection": ProjectionSettings}


def _kind(value: Any) -> str:
    """The tag of an edit; the first kind's where there is none, so that what is no section is answered as elsewhere."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"({kind})" if kind in EDITS else "(uwm)"


def _known_kind(value: Any) -> Any:
    if isinstance(value, dict) and value.get("kind") not in EDITS:
        found = f" (found: {value['kind']!r})" if "kind" in value else ""
        raise ValueError(f"kind: choose one of: {', '.join(EDITS)}{found}")
    return value


Edit = Annotated[
    Annotated[
        Annotated[UwmSettings, Tag("(uwm)")] | Annotated[ProjectionSettings, Tag("(projection)")],
        Discriminator(_kind),
    ],
    BeforeValidator(_known_kind),
]


class EditedModel(Settings):
    """A method whose weights are computed from those of the base model, without training."""

    edit: Edit

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, value: Any) -> Any:
        others = sorted(str(key) for key in value if key != "edit") if isinstance(value, dict) else []
        if others:
            raise ValueError(
                f"holds 'edit' and also {', '.join(others)}; a method's weights are computed ('edit' alone), trained "
                "('targets', 'weights' and so on) or fetched ('weights: {source: ...}'): keep one"
            )
        return value


class EditSettings(Settings):
    """All that one edit may depend on, besides its input files."""

    edit: Edit
    batch_size: Positive = Field(description="inputs encoded at once")
