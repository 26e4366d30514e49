"""Which quadruples an epoch uses, and in which order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor


def admitted(difficulty: Tensor, curriculum: Literal["none", "progressive", "reversed"], epoch: int) -> Tensor:
    """Rows that take part in an epoch, counted from 1.

    ``difficulty`` has shape (rows,): 0 easy, 1 medium, 2 hard.  SaFeR-CLIP's progressive training
    takes the easy ones first, adds the medium ones in epoch 2 and the hard ones from epoch 3 on.
    Reversed, it takes the hardest there are first, and adds the easier ones in the same steps.
    """
    if curriculum == "reversed":
        return (difficulty > difficulty.max() - epoch).nonzero()[:, 0]
    hardest = epoch - 1 if curriculum == "progressive" else 2
    return (difficulty <= hardest).nonzero()[:, 0]


def shuffled(rows: Tensor, seed: int, epoch: int) -> Tensor:
    """The rows in an order that depends on nothing but them, the seed and the epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return rows[torch.from_numpy(order)]
