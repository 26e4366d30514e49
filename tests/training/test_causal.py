"""CET's joint prediction against plain loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from saferclip.training import causal, losses

ROWS, DIM, SCALE = 7, 5, 20.0


def unit(seed: int, rows: int = ROWS) -> Tensor:
    values = 0.5 * np.random.default_rng(seed).standard_normal((rows, DIM)) + 1
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True))


def slow(
    tuned: Tensor, frozen: Tensor, partners: Tensor, neighbours: int, similarity: float, own_share: float
) -> float:
    new, old, items = tuned.detach().numpy(), frozen.numpy(), partners.numpy()

    def prediction(row: int, item: int) -> float:
        odds = [math.exp(SCALE * float(new[row] @ other)) for other in items]
        return odds[item] / sum(odds)

    total = 0.0
    for i in range(len(old)):
        others = sorted((j for j in range(len(old)) if j != i), key=lambda j, i=i: (-float(old[i] @ old[j]), j))
        alike = [j for j in others[:neighbours] if float(old[i] @ old[j]) >= similarity]
        joint = prediction(i, i)
        if alike:
            joint = own_share * joint + (1 - own_share) * sum(prediction(k, i) for k in alike) / len(alike)
        total -= math.log(joint)
    return total / len(old)


@pytest.mark.parametrize("neighbours", [1, 3, 20])
@pytest.mark.parametrize("similarity", [-1.0, 0.95, 1.1])
@pytest.mark.parametrize("own_share", [0.5, 0.97])
def test_joint_prediction_equals_plain_loops(neighbours: int, similarity: float, own_share: float) -> None:
    for seed in range(3):
        tuned, frozen, partners = unit(seed), unit(seed + 10), unit(seed + 20)
        found = causal.joint_prediction_loss(tuned, frozen, partners, SCALE, neighbours, similarity, own_share)
        expected = slow(tuned, frozen, partners, neighbours, similarity, own_share)
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_threshold_lets_some_rows_have_neighbours() -> None:
    """So that the test above covers both kinds of row."""
    for seed in range(3):
        own = torch.diag(causal.joint_weights(unit(seed + 10), 3, 0.95, 0.5))
        assert 0 < int((own == 1).sum()) < ROWS


def test_weights_of_a_joint_prediction_sum_to_one() -> None:
    weights = causal.joint_weights(unit(0), 3, 0.97, 0.9)
    assert weights.sum(dim=1).tolist() == pytest.approx([1] * ROWS)


def test_without_neighbours_it_is_half_of_a_contrast() -> None:
    """CET's plain fine-tuning: the cross-entropy of rows alone."""
    tuned, partners = unit(0), unit(1)
    both = [
        float(causal.joint_prediction_loss(one, one, other, SCALE, 3, 1.1, 0.9))
        for one, other in ((tuned, partners), (partners, tuned))
    ]
    assert sum(both) / 2 == pytest.approx(float(losses.contrast(tuned, partners, SCALE)), rel=1e-9)
    alone = causal.joint_prediction_loss(unit(0, 1), unit(0, 1), unit(1, 1), SCALE, 3, -1.0, 0.9)
    assert float(alone) == 0


def test_neighbours_get_gradient_and_stay_finite_where_predictions_vanish() -> None:
    frozen, partners = unit(0), torch.nn.functional.normalize(torch.randn(ROWS, DIM, dtype=torch.float64), dim=1)
    tuned = unit(2).requires_grad_()
    loss = causal.joint_prediction_loss(tuned, frozen, partners, 2000.0, 3, -1.0, 0.5)
    loss.backward()
    assert tuned.grad is not None and tuned.grad.isfinite().all() and loss.isfinite()
    # The prediction of row 0 alone, in the joint one of another row.
    weights = causal.joint_weights(frozen, 3, -1.0, 0.5)
    friend = int((weights[:, 0] * (torch.arange(ROWS) > 0)).argmax())
    tuned.grad = None
    log_predictions = torch.log_softmax(SCALE * tuned @ partners.T, dim=1)
    (-torch.logsumexp(weights[friend].log() + log_predictions[:, friend], dim=0)).backward()
    assert tuned.grad is not None and tuned.grad[0].abs().max() > 0
