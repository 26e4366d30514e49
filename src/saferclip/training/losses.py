"""The eight terms of Safe-CLIP and SaFeR-CLIP: pure functions of unit embeddings of shape (batch, dim).

Two of each kind, one for text and one for images:

- ``preservation``: safe inputs stay where the frozen model puts them;
- ``preservation_cross``: safe inputs stay aligned with the other modality's safe partners;
- ``redirection``: unsafe inputs move to their target of the same modality;
- ``redirection_cross``: unsafe inputs move to their target of the other modality.

The methods differ in the target (the paired safe partner, or the nearest) and in the last kind:
Safe-CLIP (ECCV 2024) contrasts with the whole batch, SaFeR-CLIP (AAAI 2026) only with the input's
own unsafe partner, so that safe items which would do as well are not pushed away.

A row may lack images.  It takes part in a term if it has every image that the term compares (``NEEDS``); the term
is the mean over the rows that take part, and 0 if none does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saferclip.config import LossWeights

TERMS = tuple(LossWeights.model_fields)
CrossModal = Literal["infonce", "relative"]

# The images that each term compares; captions are always there.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "preservation_text": (),
    "preservation_image": ("safe_image",),
    "preservation_cross_text": ("safe_image",),
    "preservation_cross_image": ("safe_image",),
    "redirection_text": (),
    "redirection_image": ("unsafe_image", "target_image"),
    "redirection_cross_text": ("target_image",),
    "redirection_cross_image": ("unsafe_image",),
}
# The relative loss moves a caption away from its own unsafe image, which it therefore needs as well.
RELATIVE_NEEDS = {**NEEDS, "redirection_cross_text": ("target_image", "unsafe_image")}


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


class References(NamedTuple):
    """The same quadruples, and the targets of their unsafe inputs, under the frozen model.

    Where an image is withheld, its embedding is zero; ``present`` says where, and is None if all images are there.
    """

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor
    target_text: Tensor
    target_image: Tensor
    present: Present | None = None

    def select(self, rows: Tensor, device: torch.device | str) -> References:
        """The embeddings of some rows."""
        columns: dict[str, Any] = {
            name: column[rows].to(device) for name, column in self._asdict().items() if name != "present"
        }
        return References(**columns, present=None if self.present is None else self.present.select(rows))

    def taking_part(self, cross_modal: CrossModal) -> dict[str, Tensor]:
        """Which rows take part in each term: bool (rows,)."""
        everywhere = torch.ones(len(self.safe_text), dtype=torch.bool)
        if self.present is None:
            return dict.fromkeys(TERMS, everywhere)
        needs = RELATIVE_NEEDS if cross_modal == "relative" else NEEDS
        images = self.present._asdict()
        return {name: torch.stack([everywhere, *(images[image] for image in needs[name])]).all(dim=0) for name in TERMS}


def terms(tuned: Embeddings, frozen: References, cross_modal: CrossModal, logit_scale: float) -> dict[str, Tensor]:
    """All eight terms by the name of their weight; each is a scalar, a mean over the rows that take part in it."""
    against_all = partial(contrast, logit_scale=logit_scale)
    compared: dict[str, tuple[Any, ...]]  # in an order of its own, which decides how gradients are summed up
    if cross_modal == "infonce":
        compared = {
            "redirection_cross_text": (against_all, tuned.unsafe_text, frozen.target_image),
            "redirection_cross_image": (against_all, tuned.unsafe_image, frozen.target_text),
        }
    else:
        compared = {
            "redirection_cross_text": (relative, tuned.unsafe_text, frozen.target_image, frozen.unsafe_image),
            "redirection_cross_image": (relative, tuned.unsafe_image, frozen.target_text, frozen.unsafe_text),
        }
    compared |= {
        "preservation_text": (distance, tuned.safe_text, frozen.safe_text),
        "preservation_image": (distance, tuned.safe_image, frozen.safe_image),
        "preservation_cross_text": (against_all, tuned.safe_text, frozen.safe_image),
        "preservation_cross_image": (against_all, tuned.safe_image, frozen.safe_text),
        "redirection_text": (distance, tuned.unsafe_text, frozen.target_text),
        "redirection_image": (distance, tuned.unsafe_image, frozen.target_image),
    }
    rows = frozen.taking_part(cross_modal)
    values = {name: _over(rows[name], term, *columns) for name, (term, *columns) in compared.items()}
    return {name: values[name] for name in TERMS}


def _over(rows: Tensor, term: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """A term over the rows that take part in it: bool (batch,)."""
    if rows.all():
        return term(*columns)
    if not rows.any():
        return columns[0].new_zeros(())
    places = rows.nonzero()[:, 0].to(columns[0].device)
    return term(*(column[places] for column in columns))


def total(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted mean of the terms: the weights are divided by their sum."""
    values = weights.model_dump()
    scale = sum(values.values())
    return torch.stack([terms[name] * (weight / scale) for name, weight in values.items()]).sum()


def contribution(terms: Mapping[str, Tensor], shares: Mapping[str, float], weights: LossWeights) -> Tensor:
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


def contrast(tuned: Tensor, partners: Tensor, logit_scale: float) -> Tensor:
    """Symmetric InfoNCE: mean of the cross-entropies of rows and of columns, partners on the diagonal.

    The negatives are the other rows given here, that is, of one micro-batch; cosines are multiplied
    by ``logit_scale``.
    """
    logits = logit_scale * tuned @ partners.T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
