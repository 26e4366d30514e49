"""The eight terms of Safe-CLIP and SaFeR-CLIP: pure functions of unit embeddings of shape (batch, dim).

Two of each kind, one for text and one for images:

- ``preservation``: safe inputs stay where the frozen model puts them;
- ``preservation_cross``: safe inputs stay aligned with the other modality's safe partners;
- ``redirection``: unsafe inputs move to their target of the same modality;
- ``redirection_cross``: unsafe inputs move to their target of the other modality.

The methods differ in the target (the paired safe partner, or the nearest) and in the last kind:
Safe-CLIP (ECCV 2024) contrasts with the whole batch, SaFeR-CLIP (AAAI 2026) only with the input's
own unsafe partner, so that safe items which would do as well are not pushed away.

A row may lack images, and labels may say that what stands in its unsafe place is safe.  It takes part in a term if it
has every image that the term compares, and is of the kind that the term is about (``needs``); the term is the mean over
the rows that take part, and 0 if none does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saferclip.config import HyperbolicWeights, LossWeights, MethodSettings
from saferclip.training import causal, geometry, similarity
from saferclip.training.entailment import entailment, lorentz_contrast

CrossModal = Literal["infonce", "relative", "margin"]
Weights = LossWeights | HyperbolicWeights


class Embeddings(NamedTuple):
    """A batch of quadruples under the model being tuned; four tensors of shape (batch, dim)."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor


class Present(NamedTuple):
    """Which rows have which images: three bool tensors of shape (rows,) on the CPU."""

    safe_image: Tensor
    unsafe_image: Tensor
    target_image: Tensor

    def select(self, rows: Tensor) -> Present:
        """The same for some rows."""
        return Present(*(column[rows] for column in self))


class Labels(NamedTuple):
    """Whether the caption and the image in a row's unsafe place are unsafe: two bool tensors (rows,) on the CPU."""

    caption: Tensor
    image: Tensor


class References(NamedTuple):
    """The same quadruples, and the targets of their unsafe inputs, under the frozen model.

    Where an image is withheld, its embedding is zero; ``present`` says where, and is None if all images are there.
    ``labels`` is None if everything is unsafe that stands in an unsafe place.
    """

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor
    target_text: Tensor
    target_image: Tensor
    present: Present | None = None
    labels: Labels | None = None
    shared: Mapping[str, Tensor] = {}  # what is the same for all rows, by a name that an optional term knows

    def select(self, rows: Tensor, device: torch.device | str) -> References:
        """The embeddings of some rows."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows].to(device) for name in COLUMNS}
        present = None if self.present is None else self.present.select(rows)
        labels = None if self.labels is None else Labels(*(column[rows] for column in self.labels))
        shared = {name: value.to(device) for name, value in self.shared.items()}
        return References(**columns, present=present, labels=labels, shared=shared)

    def taking_part(self, cross_modal: CrossModal, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Which rows take part in each term: bool (rows,)."""
        everywhere = torch.ones(len(self.safe_text), dtype=torch.bool)
        images = self.present or Present(everywhere, everywhere, everywhere)
        labels = self.labels or Labels(everywhere, everywhere)
        known = images._asdict() | {
            "caption_is_unsafe": labels.caption,
            "caption_is_safe": ~labels.caption,
            "image_is_unsafe": labels.image,
            "image_is_safe": ~labels.image,
        }
        return {
            name: torch.stack([everywhere, *(known[need] for need in term.needs)]).all(dim=0)
            for name, term in terms_of(cross_modal, names).items()
        }


COLUMNS = ("safe_text", "unsafe_text", "safe_image", "unsafe_image", "target_text", "target_image")


class Space(NamedTuple):
    """What is the same for all points of hyperbolic space: tensors without axes, and a setting."""

    curvature: Tensor
    logit_scale: Tensor
    aperture_scale: float


class Batch(NamedTuple):
    """What a term is a function of: quadruples under the tuned and under the frozen model, and settings.

    With a space, ``tuned`` are points of it instead of unit vectors.
    """

    tuned: Embeddings
    frozen: References
    logit_scale: float
    method: MethodSettings | None = None  # which optional terms with settings of their own need
    space: Space | None = None


class Term(NamedTuple):
    """A mean over the rows of a batch, and what they need: images that it compares, and what labels have to say."""

    value: Callable[[Batch], Tensor]
    needs: tuple[str, ...] = ()


def terms(
    tuned: Embeddings,
    frozen: References,
    cross_modal: CrossModal,
    logit_scale: float,
    names: Sequence[str] | None = None,
    method: MethodSettings | None = None,
    space: Space | None = None,
) -> dict[str, Tensor]:
    """Terms by the name of their weight; each is a scalar, a mean over the rows that take part in it.

    ``names`` are those wanted, as ``active`` gives them; the eight of every method if None.  ``method`` is asked for by
    optional terms that have settings of their own, ``space`` by those that compare points of it.
    """
    wanted = terms_of(cross_modal, names)
    rows = frozen.taking_part(cross_modal, names)
    batch = Batch(tuned, frozen, logit_scale, method, space)
    # Redirection across modalities first: the order decides how gradients are summed up.
    order = sorted(wanted, key=lambda name: not name.startswith("redirection_cross"))
    values = {name: _over(rows[name], wanted[name].value, batch) for name in order}
    return {name: values[name] for name in wanted}


def active(weights: Weights) -> tuple[str, ...]:
    """Names of a method's terms: the eight of every method, and optional ones whose weight is above 0.

    In hyperbolic space, where the eight have no meaning, those whose weight is above 0.
    """
    always, others = ((), HYPERBOLIC) if isinstance(weights, HyperbolicWeights) else (TERMS, OPTIONAL)
    return (*always, *(name for name in others if weights.given.get(name, 0) > 0))


def terms_of(cross_modal: CrossModal, names: Sequence[str] | None = None) -> dict[str, Term]:
    """The terms of these names, where redirection across modalities is of this kind."""
    known = {**COMMON, **REDIRECTION_CROSS[cross_modal], **OPTIONAL, **HYPERBOLIC}
    return {name: known[name] for name in (TERMS if names is None else names)}


def _over(rows: Tensor, term: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """A term over the rows that take part in it: bool (batch,)."""
    if rows.all():
        return term(batch)
    if not rows.any():
        return batch.tuned.safe_text.new_zeros(())
    places = rows.nonzero()[:, 0]
    tuned = Embeddings(*(column[places] for column in batch.tuned))
    frozen = batch.frozen.select(places, batch.tuned.safe_text.device)
    return term(batch._replace(tuned=tuned, frozen=frozen))


def total(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """Weighted mean of the terms: the weights are divided by their sum."""
    values = weights.given
    scale = sum(values.values())
    return torch.stack([term * (values[name] / scale) for name, term in terms.items()]).sum()


def contribution(terms: Mapping[str, Tensor], shares: Mapping[str, float], weights: Weights) -> Tensor:
    """What a micro-batch adds to the loss of its batch, of which it is the given share, term by term."""
    different = set(shares.values())
    if len(different) == 1:
        return different.pop() * total(terms, weights)
    return total({name: shares[name] * term for name, term in terms.items()}, weights)


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of each row with its counterpart, for unit rows: shape (batch,)."""
    return (left * right).sum(dim=-1)


def distance(tuned: Tensor, target: Tensor) -> Tensor:
    """mean_i 1 - cos(tuned_i, target_i)."""
    return 1 - cosine(tuned, target).mean()


def relative(tuned: Tensor, target: Tensor, unsafe: Tensor) -> Tensor:
    """SaFeR-CLIP's relative redirection: mean_i softplus(cos(tuned_i, unsafe_i) - cos(tuned_i, target_i))."""
    return functional.softplus(cosine(tuned, unsafe) - cosine(tuned, target)).mean()


def margin(tuned: Tensor, target: Tensor, unsafe: Tensor, least: float, scale: float) -> Tensor:
    """Ours: mean_i softplus(scale (cos(tuned_i, unsafe_i) - cos(tuned_i, target_i) + least)) / scale.

    Unlike in ``relative``, ``unsafe`` is the partner under the model being tuned, which moves as well; and an input
    that is nearer to its target by ``least`` is soon left alone.
    """
    return functional.softplus(scale * (cosine(tuned, unsafe) - cosine(tuned, target) + least)).mean() / scale


def contrast(tuned: Tensor, partners: Tensor, logit_scale: float) -> Tensor:
    """Symmetric InfoNCE: mean of the cross-entropies of rows and of columns, partners on the diagonal.

    The negatives are the other rows given here, that is, of one micro-batch; cosines are multiplied
    by ``logit_scale``.
    """
    logits = logit_scale * tuned @ partners.T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


COMMON: Mapping[str, Term] = {
    "preservation_text": Term(lambda batch: distance(batch.tuned.safe_text, batch.frozen.safe_text)),
    "preservation_image": Term(
        lambda batch: distance(batch.tuned.safe_image, batch.frozen.safe_image), needs=("safe_image",)
    ),
    "preservation_cross_text": Term(
        lambda batch: contrast(batch.tuned.safe_text, batch.frozen.safe_image, batch.logit_scale),
        needs=("safe_image",),
    ),
    "preservation_cross_image": Term(
        lambda batch: contrast(batch.tuned.safe_image, batch.frozen.safe_text, batch.logit_scale),
        needs=("safe_image",),
    ),
    "redirection_text": Term(
        lambda batch: distance(batch.tuned.unsafe_text, batch.frozen.target_text), needs=("caption_is_unsafe",)
    ),
    "redirection_image": Term(
        lambda batch: distance(batch.tuned.unsafe_image, batch.frozen.target_image),
        needs=("unsafe_image", "target_image", "image_is_unsafe"),
    ),
}
REDIRECTION_CROSS: Mapping[CrossModal, Mapping[str, Term]] = {
    "infonce": {
        "redirection_cross_text": Term(
            lambda batch: contrast(batch.tuned.unsafe_text, batch.frozen.target_image, batch.logit_scale),
            needs=("target_image", "caption_is_unsafe"),
        ),
        "redirection_cross_image": Term(
            lambda batch: contrast(batch.tuned.unsafe_image, batch.frozen.target_text, batch.logit_scale),
            needs=("unsafe_image", "image_is_unsafe"),
        ),
    },
    "relative": {
        # A caption moves away from its own unsafe image, which this therefore needs as well; and nothing moves away
        # from a partner that is safe.
        "redirection_cross_text": Term(
            lambda batch: relative(batch.tuned.unsafe_text, batch.frozen.target_image, batch.frozen.unsafe_image),
            needs=("target_image", "unsafe_image", "caption_is_unsafe", "image_is_unsafe"),
        ),
        "redirection_cross_image": Term(
            lambda batch: relative(batch.tuned.unsafe_image, batch.frozen.target_text, batch.frozen.unsafe_text),
            needs=("unsafe_image", "caption_is_unsafe", "image_is_unsafe"),
        ),
    },
    "margin": {
        "redirection_cross_text": Term(
            lambda batch: _margin(batch, "text", "image"),
            needs=("target_image", "unsafe_image", "caption_is_unsafe", "image_is_unsafe"),
        ),
        "redirection_cross_image": Term(
            lambda batch: _margin(batch, "image", "text"),
            needs=("unsafe_image", "caption_is_unsafe", "image_is_unsafe"),
        ),
    },
}


def _margin(batch: Batch, modality: str, other: str) -> Tensor:
    """Redirection of unsafe captions or images away from their partners, as both are under the tuned model."""
    assert batch.method is not None and batch.method.margin is not None  # by the settings' validator
    settings = batch.method.margin
    tuned, partner = (getattr(batch.tuned, f"unsafe_{name}") for name in (modality, other))
    return margin(tuned, getattr(batch.frozen, f"target_{other}"), partner, settings.margin, settings.scale)


def _similarity(batch: Batch, modality: str, other: str) -> Tensor:
    """What safe captions or safe images make of the batch's safe items of the other modality."""
    tuned, frozen = (getattr(side, f"safe_{modality}") for side in (batch.tuned, batch.frozen))
    return similarity.divergence(tuned, frozen, getattr(batch.frozen, f"safe_{other}"), batch.logit_scale)


def _neighbourhood(batch: Batch, modality: str) -> Tensor:
    """SAGE's local structure alignment, of safe captions or safe images."""
    assert batch.method is not None and batch.method.neighbourhood is not None  # by the settings' validator
    settings = batch.method.neighbourhood
    tuned, frozen = (getattr(side, f"safe_{modality}") for side in (batch.tuned, batch.frozen))
    unsafe = batch.frozen.shared[f"unsafe_direction_{modality}"]
    return geometry.distortion(tuned, frozen, unsafe, settings.neighbours, settings.shift)


def _causal(batch: Batch, modality: str, other: str) -> Tensor:
    """CET's joint prediction of the other modality's partner, for safe captions or safe images."""
    assert batch.method is not None and batch.method.causal is not None  # by the settings' validator
    settings = batch.method.causal
    tuned, frozen = (getattr(side, f"safe_{modality}") for side in (batch.tuned, batch.frozen))
    partners = getattr(batch.frozen, f"safe_{other}")
    return causal.joint_prediction_loss(
        tuned, frozen, partners, batch.logit_scale, settings.neighbours, settings.similarity, settings.own_share
    )


BOTH_SAFE = ("unsafe_image", "caption_is_safe", "image_is_safe")
# Terms of other methods, each by the name of its weight, in a module of its own.
OPTIONAL: Mapping[str, Term] = {
    "spread_text": Term(lambda batch: geometry.contraction(batch.tuned.safe_text, batch.frozen.safe_text)),
    "spread_image": Term(
        lambda batch: geometry.contraction(batch.tuned.safe_image, batch.frozen.safe_image), needs=("safe_image",)
    ),
    "neighbourhood_text": Term(lambda batch: _neighbourhood(batch, "text")),
    "neighbourhood_image": Term(lambda batch: _neighbourhood(batch, "image"), needs=("safe_image",)),
    "causal_text": Term(lambda batch: _causal(batch, "text", "image"), needs=("safe_image",)),
    "causal_image": Term(lambda batch: _causal(batch, "image", "text"), needs=("safe_image",)),
    "similarity_text": Term(lambda batch: _similarity(batch, "text", "image"), needs=("safe_image",)),
    "similarity_image": Term(lambda batch: _similarity(batch, "image", "text"), needs=("safe_image",)),
    # ShieldCLIP's: what is safe in an unsafe place stays where the frozen model puts it ...
    "kept_text": Term(
        lambda batch: distance(batch.tuned.unsafe_text, batch.frozen.unsafe_text), needs=("caption_is_safe",)
    ),
    "kept_image": Term(
        lambda batch: distance(batch.tuned.unsafe_image, batch.frozen.unsafe_image),
        needs=("unsafe_image", "image_is_safe"),
    ),
    "kept_cross_text": Term(
        lambda batch: contrast(batch.tuned.unsafe_text, batch.frozen.unsafe_image, batch.logit_scale), needs=BOTH_SAFE
    ),
    "kept_cross_image": Term(
        lambda batch: contrast(batch.tuned.unsafe_image, batch.frozen.unsafe_text, batch.logit_scale), needs=BOTH_SAFE
    ),
    # ... what is unsafe follows a safe partner, which gets no gradient ...
    "mixed_text": Term(
        lambda batch: contrast(batch.tuned.unsafe_text, batch.tuned.unsafe_image.detach(), batch.logit_scale),
        needs=("unsafe_image", "caption_is_unsafe", "image_is_safe"),
    ),
    "mixed_image": Term(
        lambda batch: contrast(batch.tuned.unsafe_image, batch.tuned.unsafe_text.detach(), batch.logit_scale),
        needs=("unsafe_image", "caption_is_safe", "image_is_unsafe"),
    ),
    # ... and two that are unsafe stay together.
    "coherence": Term(
        lambda batch: contrast(batch.tuned.unsafe_text, batch.tuned.unsafe_image, batch.logit_scale),
        needs=("unsafe_image", "caption_is_unsafe", "image_is_unsafe"),
    ),
}
TERMS = tuple(name for name in LossWeights.model_fields if name not in OPTIONAL)


def _contrasted(left: str, right: str) -> Term:
    """Two columns of a batch brought together in hyperbolic space."""

    def value(batch: Batch) -> Tensor:
        assert batch.space is not None
        one, other = getattr(batch.tuned, left), getattr(batch.tuned, right)
        return lorentz_contrast(one, other, batch.space.curvature, batch.space.logit_scale)

    return Term(value, needs=_images(left, right))


def _entailed(general: str, special: str) -> Term:
    """One column of a batch in the cones of another."""

    def value(batch: Batch) -> Tensor:
        assert batch.space is not None
        apexes, points = getattr(batch.tuned, general), getattr(batch.tuned, special)
        return entailment(apexes, points, batch.space.curvature, batch.space.aperture_scale)

    return Term(value, needs=_images(general, special))


def _images(*columns: str) -> tuple[str, ...]:
    return tuple(name for name in columns if name.endswith("_image"))


# HySAC's (CVPR 2025): every caption beside every image of its row, and the way down from what is general:
# safe caption, safe image, unsafe caption, unsafe image.
HYPERBOLIC: Mapping[str, Term] = {
    "contrast_safe": _contrasted("safe_text", "safe_image"),
    "contrast_unsafe": _contrasted("unsafe_text", "unsafe_image"),
    "contrast_safe_text": _contrasted("safe_text", "unsafe_image"),
    "contrast_safe_image": _contrasted("unsafe_text", "safe_image"),
    "entailment_safe": _entailed("safe_text", "safe_image"),
    "entailment_unsafe": _entailed("unsafe_text", "unsafe_image"),
    "entailment_safety": _entailed("safe_image", "unsafe_text"),
}
