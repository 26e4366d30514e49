"""The eight terms of Safe-CLIP and SaFeR-CLIP: pure functions of unit embeddings of shape (batch, dim).

Two of each kind, one for text and one for images:

- ``preservation``: safe inputs stay where the frozen model puts them;
- ``preservation_cross``: safe inputs stay aligned with the other modality's safe partners;
- ``redirection``: unsafe inputs move to their target of the same modality;
- ``redirection_cross``: unsafe inputs move to their target of the other modality.

The methods differ in the target (the paired safe partner, or the nearest) and in the last kind:
Safe-CLIP (ECCV 2024) contrasts with the whole batch, SaFeR-CLIP (AAAI 2026) only with the input's
own unsafe partner, so that safe items which would do as well are not pushed away.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saferclip.config import LossWeights

TERMS = tuple(LossWeights.model_fields)


class Embeddings(NamedTuple):
    """A batch of quadruples under the model being tuned; four tensors of shape (batch, dim)."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor


class References(NamedTuple):
    """The same quadruples, and the targets of their unsafe inputs, under the frozen model."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor
    target_text: Tensor
    target_image: Tensor

    def select(self, rows: Tensor, device: torch.device | str) -> References:
        """The embeddings of some rows."""
        return References(*(column[rows].to(device) for column in self))


def terms(
    tuned: Embeddings, frozen: References, cross_modal: Literal["infonce", "relative"], logit_scale: float
) -> dict[str, Tensor]:
    """All eight terms by the name of their weight; each is a scalar, a mean over the batch."""
    if cross_modal == "infonce":
        cross_text = contrast(tuned.unsafe_text, frozen.target_image, logit_scale)
        cross_image = contrast(tuned.unsafe_image, frozen.target_text, logit_scale)
    else:
        cross_text = relative(tuned.unsafe_text, frozen.target_image, frozen.unsafe_image)
        cross_image = relative(tuned.unsafe_image, frozen.target_text, frozen.unsafe_text)
    values = {
        "preservation_text": distance(tuned.safe_text, frozen.safe_text),
        "preservation_image": distance(tuned.safe_image, frozen.safe_image),
        "preservation_cross_text": contrast(tuned.safe_text, frozen.safe_image, logit_scale),
        "preservation_cross_image": contrast(tuned.safe_image, frozen.safe_text, logit_scale),
        "redirection_text": distance(tuned.unsafe_text, frozen.target_text),
        "redirection_image": distance(tuned.unsafe_image, frozen.target_image),
        "redirection_cross_text": cross_text,
        "redirection_cross_image": cross_image,
    }
    return {name: values[name] for name in TERMS}


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted mean of the terms: the weights are divided by their sum."""
    values = weights.model_dump()
    scale = sum(values.values())
    return torch.stack([terms[name] * (weight / scale) for name, weight in values.items()]).sum()


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
