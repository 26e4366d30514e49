"""Preservation by similarities: what an input resembles stays as it was, wherever its embedding goes.

Knowledge distillation (Hinton et al. 2015) of the contrastive prediction, from the frozen model to the tuned one.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def divergence(tuned: Tensor, frozen: Tensor, items: Tensor, logit_scale: float) -> Tensor:
    """mean_i KL(p_i || q_i), where p_i and q_i are softmax over items of ``logit_scale`` times the cosine.

    p_i is of row i of ``frozen``, q_i of the same row of ``tuned``: unit rows (batch, dim) of one modality; ``items``,
    (items, dim), are frozen and of the other.
    """
    before, after = (functional.log_softmax(logit_scale * rows @ items.T, dim=1) for rows in (frozen, tuned))
    return functional.kl_div(after, before, reduction="batchmean", log_target=True)
