"""The search against all similarities at once in exact arithmetic, where its shortcuts could go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from saferclip import io, similarity

PRECISIONS = [torch.float32, torch.bfloat16]


def unit(count: int, dim: int, seed: int) -> Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def exact(queries: Tensor, gallery: Tensor) -> NDArray[np.float64]:
    """All similarities as multiples of 2^-48, by integers, which do not round."""
    left, right = (np.rint(rows.double().numpy() * 2**24).astype(np.int64) for rows in (queries, gallery))
    return (left @ right.T).astype(np.float64) / 2.0**48


def check(queries: Tensor, gallery: Tensor, k: int, block_size: int, precision: torch.dtype | None) -> None:
    """Best items and counts are those of the whole exact matrix; thresholds are similarities that occur in it."""
    everything = exact(queries, gallery)
    threshold = everything[np.arange(len(queries)), np.arange(len(queries)) * 7 % len(gallery)]
    found = similarity.search(queries, gallery, block_size, k, torch.from_numpy(threshold), precision=precision)
    order = np.argsort(-everything, axis=1, kind="stable")[:, :k]
    assert found.position.tolist() == order.tolist()
    assert found.similarity.tolist() == np.take_along_axis(everything, order, axis=1).tolist()
    assert found.at_least.tolist() == (everything >= threshold[:, None]).sum(axis=1).tolist()
    alone = similarity.search(queries, gallery, block_size, k, precision=precision)
    assert torch.equal(alone.position, found.position)


@pytest.mark.parametrize("precision", [*PRECISIONS, None], ids=str)
@pytest.mark.parametrize(("k", "block_size"), [(1, 64), (3, 250), (1, 5000)])
def test_search_equals_exact_arithmetic(precision: torch.dtype | None, k: int, block_size: int) -> None:
    gallery = unit(1500, 48, 1)
    queries = torch.nn.functional.normalize(gallery[:90] + 0.15 * unit(90, 48, 2), dim=-1)
    check(queries, gallery, k, block_size, precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("copies", [2, 40, 400])
def test_equal_items_tie_however_many_they_are(precision: torch.dtype, copies: int) -> None:
    gallery = unit(400 // copies, 32, 3).repeat(copies, 1)
    check(torch.cat([gallery[:5], unit(40, 32, 4)]), gallery, 3, 60, precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_differences_far_below_the_products_precision_decide(precision: torch.dtype) -> None:
    """Items that lie 2^-24 apart in one number: the product sees no difference, the result does."""
    gallery = unit(1, 64, 5).repeat(300, 1)
    gallery[:, 0] = 0.25 + torch.arange(300) * 2.0**-24
    queries = torch.nn.functional.normalize(gallery[:20] + 0.1 * unit(20, 64, 6), dim=-1)
    queries[:, 0] = 0.5
    products = queries.to(precision) @ gallery.to(precision).T
    assert (products.float().argmax(dim=1).numpy() != exact(queries, gallery).argmax(axis=1)).any()
    check(queries, gallery, 2, 50, precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "dim"), [(1, 1, 1), (1, 70, 768), (33, 1, 512), (64, 65, 1024), (40, 9, 7)]
)
def test_the_error_that_is_reckoned_with_is_never_exceeded(
    precision: torch.dtype, rows: int, columns: int, dim: int
) -> None:
    # All numbers positive and alike: the sums that round most.
    queries = torch.nn.functional.normalize(unit(rows, dim, 7).abs() + 0.1, dim=-1)
    gallery = torch.nn.functional.normalize(unit(columns, dim, 8).abs() + 0.1, dim=-1)
    left, right = (similarity._rounded(side, None, precision) for side in (queries, gallery))
    difference = np.abs((left.values @ right.values.T).double().numpy() - exact(queries, gallery)).max()
    assert difference <= similarity._error(left, right)


def test_bounds_are_rounded_up_to_the_next_number_of_a_precision() -> None:
    bounds = torch.linspace(-1, 1, 999)
    ceiling = similarity._ceiling(bounds, torch.bfloat16)
    assert (ceiling.float() >= bounds).all()
    below = torch.nextafter(ceiling, torch.full_like(ceiling, -torch.inf)).float()
    assert (below < bounds).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_an_order_decides_between_equals(precision: torch.dtype) -> None:
    gallery = unit(30, 16, 9).repeat(3, 1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(10))
    found = similarity.search(gallery[:30], gallery, 20, 3, order=order, precision=precision)
    place = {row: number for number, row in enumerate(order.tolist())}
    expected = [sorted((row, row + 30, row + 60), key=place.__getitem__) for row in range(30)]
    assert found.position.tolist() == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 4.0])
@pytest.mark.parametrize("side", ["queries", "gallery"])
def test_rows_that_are_no_unit_vectors_are_refused(value: float, side: str) -> None:
    sides = {"queries": unit(5, 8, 0), "gallery": unit(9, 8, 1)}
    sides[side][3, 2] = value
    with pytest.raises(ValueError, match="embeddings must be finite unit vectors"):
        similarity.search(**sides, block_size=4, k=1)


def test_no_queries_find_nothing() -> None:
    found = similarity.search(unit(0, 8, 0), unit(9, 8, 1), 4, 2, torch.empty(0))
    assert [tuple(column.shape) for column in found] == [(0, 2), (0, 2), (0,)]


def test_lower_precision_elsewhere_changes_nothing_and_stays_set() -> None:
    gallery = unit(300, 64, 11)
    queries = torch.nn.functional.normalize(gallery[:40] + 0.3 * unit(40, 64, 12), dim=-1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            check(queries, gallery, 2, 64, torch.float32)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


def test_some_tensors_of_a_file_are_read_alone(tmp_path: Path) -> None:
    io.write_tensors(tmp_path / "some.safetensors", {"a": torch.ones(3), "b": torch.zeros(2)})
    assert list(io.read_tensors(tmp_path / "some.safetensors", ["b"])) == ["b"]
    with pytest.raises(io.DataError, match=r"some.safetensors: tensor 'c' is missing"):
        io.read_tensors(tmp_path / "some.safetensors", ["a", "c"])


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_a_tensor_is_read_in_parts(tmp_path: Path, size: int) -> None:
    rows = unit(5, 4, 0)
    io.write_tensors(tmp_path / "some.safetensors", {"a": rows, "b": torch.zeros(2)})
    parts = list(io.read_rows(tmp_path / "some.safetensors", "a", size))
    assert all(len(part) == size for part in parts[:-1])
    assert torch.equal(torch.cat(parts), rows)
    with pytest.raises(io.DataError, match=r"some.safetensors: tensor 'c' is missing"):
        next(io.read_rows(tmp_path / "some.safetensors", "c", size))
    (tmp_path / "some.safetensors").write_bytes(b"none")
    with pytest.raises(io.DataError, match=r"some.safetensors: cannot be read as safetensors"):
        next(io.read_rows(tmp_path / "some.safetensors", "a", size))
