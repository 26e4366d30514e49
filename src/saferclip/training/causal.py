"""Causal effect tuning (CET, ACL 2023, arXiv 2306.10790) for contrastive prediction.

CET keeps the causal effect of pre-training data on predictions by conditioning on a collider: inputs that the frozen
model finds alike.  A row's prediction is joined with those of its nearest neighbours, and the joint one is fitted to
the row's label.  Here a row's prediction is the distribution over the other modality's safe items of the micro-batch,
and its label is its own partner; neighbours are rows of the micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saferclip.training.geometry import nearest_others


def joint_prediction_loss(
    tuned: Tensor,
    frozen: Tensor,
    partners: Tensor,
    logit_scale: float,
    neighbours: int,
    similarity: float,
    own_share: float,
) -> Tensor:
    """mean_i -log( w p_i(i) + (1 - w) mean_k p_k(i) ), with k the neighbours of row i, and w = ``own_share``.

    ``tuned`` (rows, dim) are unit embeddings under the model being tuned, ``frozen`` the same under the frozen one,
    ``partners`` those of the other modality, frozen; p_k(j) is the softmax over j of ``logit_scale`` cos(tuned_k,
    partner_j).  Neighbours are the at most ``neighbours`` other rows that the frozen model finds most alike, with a
    cosine of at least ``similarity``; a row without any has w = 1.
    """
    log_predictions = functional.log_softmax(logit_scale * tuned @ partners.T, dim=1)
    weights = joint_weights(frozen, neighbours, similarity, own_share)
    # In logarithms: a neighbour's prediction of a partner that is not its own may be too small for a plain number.
    return -torch.logsumexp(weights.log() + log_predictions.T, dim=1).mean()


def joint_weights(frozen: Tensor, neighbours: int, similarity: float, own_share: float) -> Tensor:
    """Weight of row k's prediction in the joint one of row i, (i, k); rows sum to 1."""
    others = nearest_others(frozen, neighbours)
    alike = (frozen @ frozen.T).gather(1, others) >= similarity
    counts = alike.sum(dim=1, keepdim=True)
    weights = torch.eye(len(frozen), dtype=frozen.dtype, device=frozen.device)
    weights[counts[:, 0] > 0] *= own_share
    shares = alike.to(frozen.dtype) * (1 - own_share) / counts.clamp(min=1)
    return weights.scatter_add_(1, others, shares)
