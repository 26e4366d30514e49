"""Every term against plain loops in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saferclip.config import LossWeights
from saferclip.training import losses
from saferclip.training.losses import Embeddings, References

BATCH, DIM = 5, 7
SCALE = 100
EVEN = LossWeights(**dict.fromkeys(losses.TERMS, 1.0))


def unit(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, BATCH, DIM, dtype=torch.float64, generator=generator)
    # Near each other, as CLIP's are, so that no term is saturated.
    return list(torch.nn.functional.normalize(rows * 0.02 + torch.ones(DIM), dim=-1))


@pytest.fixture
def tuned() -> Embeddings:
    return Embeddings(*unit(4))


@pytest.fixture
def frozen() -> References:
    return References(*unit(6))


def dot(left: Tensor, right: Tensor) -> float:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def slow_distance(tuned: Tensor, target: Tensor) -> float:
    return sum(1 - dot(tuned[row], target[row]) for row in range(BATCH)) / BATCH


def slow_relative(tuned: Tensor, target: Tensor, unsafe: Tensor) -> float:
    margins = [dot(tuned[row], unsafe[row]) - dot(tuned[row], target[row]) for row in range(BATCH)]
    return sum(math.log(1 + math.exp(margin)) for margin in margins) / BATCH


def slow_contrast(tuned: Tensor, partners: Tensor) -> float:
    """Mean over rows and over columns of -log(exp(s_ii) / sum_j exp(s_ij)), with s = SCALE cos."""
    similarity = [[SCALE * dot(tuned[row], partners[column]) for column in range(BATCH)] for row in range(BATCH)]
    total = 0.0
    for here in range(BATCH):
        row = sum(math.exp(similarity[here][other] - similarity[here][here]) for other in range(BATCH))
        column = sum(math.exp(similarity[other][here] - similarity[here][here]) for other in range(BATCH))
        total += math.log(row) + math.log(column)
    return total / (2 * BATCH)


def slow_terms(tuned: Embeddings, frozen: References, cross_modal: str) -> dict[str, float]:
    """PAPER: t, t*, v, v* under the tuned encoders; t^, v^ are the targets under the frozen ones."""
    if cross_modal == "infonce":
        cross_text = slow_contrast(tuned.unsafe_text, frozen.target_image)
        cross_image = slow_contrast(tuned.unsafe_image, frozen.target_text)
    else:
        cross_text = slow_relative(tuned.unsafe_text, frozen.target_image, frozen.unsafe_image)
        cross_image = slow_relative(tuned.unsafe_image, frozen.target_text, frozen.unsafe_text)
    return {
        "preservation_text": slow_distance(tuned.safe_text, frozen.safe_text),
        "preservation_image": slow_distance(tuned.safe_image, frozen.safe_image),
        "preservation_cross_text": slow_contrast(tuned.safe_text, frozen.safe_image),
        "preservation_cross_image": slow_contrast(tuned.safe_image, frozen.safe_text),
        "redirection_text": slow_distance(tuned.unsafe_text, frozen.target_text),
        "redirection_image": slow_distance(tuned.unsafe_image, frozen.target_image),
        "redirection_cross_text": cross_text,
        "redirection_cross_image": cross_image,
    }


@pytest.mark.parametrize("cross_modal", ["infonce", "relative"])
def test_every_term_equals_plain_loops(tuned: Embeddings, frozen: References, cross_modal: str) -> None:
    found = losses.terms(tuned, frozen, cross_modal, SCALE)  # type: ignore[arg-type]
    expected = slow_terms(tuned, frozen, cross_modal)
    assert set(found) == set(expected) == set(LossWeights.model_fields)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cross_modal", ["infonce", "relative"])
def test_total_divides_the_weights_by_their_sum(tuned: Embeddings, frozen: References, cross_modal: str) -> None:
    values = {name: number + 1.0 for number, name in enumerate(losses.TERMS)}
    expected = slow_terms(tuned, frozen, cross_modal)
    mean = sum(weight * expected[name] for name, weight in values.items()) / sum(values.values())
    terms = losses.terms(tuned, frozen, cross_modal, SCALE)  # type: ignore[arg-type]
    assert float(losses.total(terms, LossWeights(**values))) == pytest.approx(mean, rel=1e-9)
    doubled = LossWeights(**{name: 2 * weight for name, weight in values.items()})
    assert float(losses.total(terms, doubled)) == pytest.approx(mean, rel=1e-9)


def test_total_leaves_out_terms_without_weight() -> None:
    terms = {name: torch.tensor(float(number)) for number, name in enumerate(losses.TERMS)}
    only = {**dict.fromkeys(losses.TERMS, 0.0), "redirection_text": 0.3}
    assert float(losses.total(terms, LossWeights(**only))) == float(terms["redirection_text"])


@pytest.mark.parametrize("cross_modal", ["infonce", "relative"])
def test_safe_inputs_at_their_reference_and_unsafe_ones_at_their_target_cost_nothing_within_a_modality(
    frozen: References, cross_modal: str
) -> None:
    perfect = Embeddings(frozen.safe_text, frozen.target_text, frozen.safe_image, frozen.target_image)
    terms = losses.terms(perfect, frozen, cross_modal, SCALE)  # type: ignore[arg-type]
    for name in ("preservation_text", "preservation_image", "redirection_text", "redirection_image"):
        assert float(terms[name]) == pytest.approx(0, abs=1e-12)


def test_relative_redirection_uses_no_other_row(tuned: Embeddings, frozen: References) -> None:
    """The gradient of one row does not depend on the others; that of the contrast does."""
    gradients = []
    for rows in (torch.arange(BATCH), torch.tensor([0])):
        leaf = tuned.unsafe_image[rows].clone().requires_grad_()
        references = frozen.select(rows, "cpu")
        losses.relative(leaf, references.target_text, references.unsafe_text).mul(len(rows)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    contrast = losses.contrast(tuned.unsafe_image, frozen.target_text, SCALE)
    alone = losses.contrast(tuned.unsafe_image[:1], frozen.target_text[:1], SCALE)
    assert float(alone) == 0 and float(contrast) > 0.1


def test_gradients_reach_all_tuned_embeddings(frozen: References) -> None:
    for cross_modal in ("infonce", "relative"):
        leaves = Embeddings(*(rows.requires_grad_() for rows in unit(4)))
        losses.total(losses.terms(leaves, frozen, cross_modal, SCALE), EVEN).backward()  # type: ignore[arg-type]
        assert all(leaf.grad is not None and leaf.grad.abs().min() > 0 for leaf in leaves)


def test_selected_rows_keep_their_columns(frozen: References) -> None:
    rows = torch.tensor([3, 1])
    selected = frozen.select(rows, "cpu")
    for name, column in selected._asdict().items():
        assert torch.equal(column, getattr(frozen, name)[rows])
