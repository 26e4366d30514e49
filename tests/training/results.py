"""What a training wrote, to be compared with what another one did."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from saferclip import io, models
from saferclip.training.tuner import CLOCK


def weights(folder: Path) -> dict[str, Tensor]:
    """The merged model's weights."""
    return io.read_tensors(folder / models.WEIGHTS)


def same_weights(one: Path, other: Path) -> bool:
    """To the last bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(folder: Path) -> pd.DataFrame:
    """steps.csv without what the clock says."""
    return pd.read_csv(folder / "steps.csv").drop(columns=list(CLOCK))
