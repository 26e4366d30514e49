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
    return sum(1 - dot(tuned[row], target[row]) for row in range(len(tuned))) / len(tuned)


def slow_relative(tuned: Tensor, target: Tensor, unsafe: Tensor) -> float:
    margins = [dot(tuned[row], unsafe[row]) - dot(tuned[row], target[row]) for row in range(len(tuned))]
    return sum(math.log(1 + math.exp(margin)) for margin in margins) / len(tuned)


def slow_contrast(tuned: Tensor, partners: Tensor) -> float:
    """Mean over rows and over columns of -log(exp(s_ii) / sum_j exp(s_ij)), with s = SCALE cos."""
    similarity = [
        [SCALE * dot(tuned[row], partners[column]) for column in range(len(tuned))] for row in range(len(tuned))
    ]
    total = 0.0
    for here in range(len(tuned)):
        row = sum(math.exp(similarity[here][other] - similarity[here][here]) for other in range(len(tuned)))
        column = sum(math.exp(similarity[other][here] - similarity[here][here]) for other in range(len(tuned)))
        total += math.log(row) + math.log(column)
    return total / (2 * len(tuned))


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
    assert set(found) == set(expected) == set(losses.TERMS)
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


def test_margin_equals_a_plain_loop(tuned: Embeddings, frozen: References) -> None:
    expected = 0.0
    for own, target, partner in zip(tuned.unsafe_text, frozen.target_image, tuned.unsafe_image, strict=True):
        expected += math.log1p(math.exp(9.0 * (float(own @ partner) - float(own @ target) + 0.2))) / 9.0 / BATCH
    found = losses.margin(tuned.unsafe_text, frozen.target_image, tuned.unsafe_image, 0.2, 9.0)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_margin_moves_both_partners_and_leaves_alone_what_is_far_enough(tuned: Embeddings) -> None:
    own, partner = (rows.clone().requires_grad_() for rows in (tuned.unsafe_text, tuned.unsafe_image))
    losses.margin(own, tuned.safe_image, partner, 0.2, 9.0).backward()
    assert own.grad is not None and partner.grad is not None
    assert own.grad.abs().max() > 1e-3 and partner.grad.abs().max() > 1e-3
    at_target = tuned.safe_image.clone().requires_grad_()
    losses.margin(at_target, tuned.safe_image, -tuned.safe_image, 0.2, 20.0).backward()
    assert at_target.grad is not None and at_target.grad.abs().max() < 1e-12


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


def present(**missing: list[int]) -> losses.Present:
    """All images but those of the given rows."""
    masks = {name: torch.ones(BATCH, dtype=torch.bool) for name in losses.Present._fields}
    for name, rows in missing.items():
        masks[name][rows] = False
    return losses.Present(**masks)


# Which rows take part in each term, written out by hand from what the term compares.
MISSING = {"safe_image": [0], "unsafe_image": [1, 2], "target_image": [2, 3]}
PARTS = {
    "preservation_text": [0, 1, 2, 3, 4],
    "preservation_image": [1, 2, 3, 4],
    "preservation_cross_text": [1, 2, 3, 4],
    "preservation_cross_image": [1, 2, 3, 4],
    "redirection_text": [0, 1, 2, 3, 4],
    "redirection_image": [0, 4],
    "redirection_cross_image": [0, 3, 4],
}
CROSS_TEXT = {"infonce": [0, 1, 4], "relative": [0, 4]}


@pytest.mark.parametrize("cross_modal", ["infonce", "relative"])
def test_terms_are_means_over_the_rows_that_have_what_they_compare(
    tuned: Embeddings, frozen: References, cross_modal: str
) -> None:
    gaps = frozen._replace(present=present(**MISSING))
    # What stands in place of a missing image must not matter, in no row.
    for column, name in ((tuned.safe_image, "safe_image"), (tuned.unsafe_image, "unsafe_image")):
        column[MISSING[name]] = math.nan
    for name, rows in MISSING.items():
        getattr(gaps, name)[rows] = math.nan
    found = losses.terms(tuned, gaps, cross_modal, SCALE)  # type: ignore[arg-type]
    for name, rows in {**PARTS, "redirection_cross_text": CROSS_TEXT[cross_modal]}.items():
        alone = Embeddings(*(column[rows] for column in tuned))
        # The slow terms compute all eight; those with a gap come out as nan, and are not asked for here.
        expected = slow_terms(alone, frozen.select(torch.tensor(rows), "cpu"), cross_modal)[name]
        assert float(found[name]) == pytest.approx(expected, rel=1e-9), name


def test_a_term_without_rows_is_zero_and_has_no_gradient(frozen: References) -> None:
    everything = list(range(BATCH))
    gaps = frozen._replace(present=present(safe_image=everything, unsafe_image=everything, target_image=everything))
    for cross_modal in ("infonce", "relative"):
        leaves = Embeddings(*(rows.requires_grad_() for rows in unit(4)))
        terms = losses.terms(leaves, gaps, cross_modal, SCALE)  # type: ignore[arg-type]
        measured = {"preservation_text", "redirection_text"}
        assert {name for name, value in terms.items() if value.item() == 0} == set(losses.TERMS) - measured
        losses.total(terms, EVEN).backward()
        assert leaves.safe_image.grad is None and leaves.unsafe_image.grad is None
        assert leaves.safe_text.grad is not None and leaves.unsafe_text.grad is not None


def test_complete_rows_take_the_same_path_with_and_without_masks(tuned: Embeddings, frozen: References) -> None:
    for cross_modal in ("infonce", "relative"):
        plain = losses.terms(tuned, frozen, cross_modal, SCALE)  # type: ignore[arg-type]
        masked = losses.terms(tuned, frozen._replace(present=present()), cross_modal, SCALE)  # type: ignore[arg-type]
        assert all(torch.equal(plain[name], masked[name]) for name in losses.TERMS)


def test_equal_shares_scale_the_whole_loss_and_others_each_term() -> None:
    terms = {name: torch.tensor(number + 1.0, dtype=torch.float64) for number, name in enumerate(losses.TERMS)}
    even = losses.contribution(terms, dict.fromkeys(losses.TERMS, 0.25), EVEN)
    assert torch.equal(even, 0.25 * losses.total(terms, EVEN))
    shares = {name: 1 / (number + 2) for number, name in enumerate(losses.TERMS)}
    expected = sum((number + 1) / (number + 2) for number in range(8)) / 8
    assert float(losses.contribution(terms, shares, EVEN)) == pytest.approx(expected, rel=1e-12)


def test_selected_rows_keep_their_columns(frozen: References) -> None:
    rows = torch.tensor([3, 1])
    everything = frozen._replace(present=present(unsafe_image=[3]), shared={"direction": torch.ones(2)})
    selected = everything.select(rows, "cpu")
    for name in losses.COLUMNS:
        assert torch.equal(getattr(selected, name), getattr(frozen, name)[rows]), name
    assert selected.shared["direction"].tolist() == [1, 1]
    masks = frozen._replace(present=present(**MISSING)).select(rows, "cpu").present
    assert masks is not None and [mask.tolist() for mask in masks] == [[True, True], [True, False], [False, True]]
