"""Exact cosines of all pairs at the price of inexact ones: a fast product finds the pairs that can matter.

Similarities are dot products of rows in fixed point, which float64 represents without rounding: equal items tie,
whatever the block size, thread count or machine.  To compute all of them so costs two to eight times a product in
float32 or bfloat16.  Therefore blocks are multiplied in one of these, and only pairs that lie within its largest
possible error of a decision are computed exactly.  That error is a bound, not an estimate: the result is the exact one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Largest relative error of one rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
LONGEST = 3.0  # length of a row up to which float64 holds every partial sum of products
CACHED = 512  # rows in float64 that are worked on at once, so that they stay in the processor's cache
# If this share of a block matters, all of it is computed exactly, which is then faster than to gather pairs.
MANY = 1 / 64
# If so many pairs of a query and a block are undecided in bfloat16, float32 decides most of them faster.
UNDECIDED = 8


class Found(NamedTuple):
    """The best items of each query, best first, and how many items reach its threshold."""

    similarity: Tensor  # float64 (queries, k)
    position: Tensor  # int64 (queries, k), in the gallery
    at_least: Tensor  # int64 (queries,); 0 without a threshold


def fixed_point(embeddings: Tensor) -> Tensor:
    """Round to multiples of 2^-24, in float64.

    Products are then multiples of 2^-48 and sums of them stay below 2^4, so that float64 represents
    every partial sum of a dot product: the result is exact, in any order of summation.  The rounding
    is below the precision of float32 unit vectors.
    """
    return (embeddings.double() * 2**24).round_().mul_(2.0**-24)


def fastest() -> torch.dtype:
    """The precision in which this processor multiplies fastest."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


@torch.no_grad()
def search(
    queries: Tensor,
    gallery: Tensor,
    block_size: int,
    k: int = 0,
    threshold: Tensor | None = None,
    order: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Found:
    """Compare each query with each gallery item once.

    ``queries`` (n, dim), ``gallery`` (m, dim), ``threshold`` (n,).  Of equally similar items the first one of the
    gallery comes first, or the first in ``order`` (m,), a permutation of the gallery's positions.  Memory is that of
    a few blocks of ``block_size`` x ``block_size``, and of the gallery once more in ``precision``.

    Raises ValueError if the gallery has fewer than ``k`` items, or rows that are not finite or too long.
    """
    if k > len(gallery):
        raise ValueError(f"top {k} of a gallery of {len(gallery)} items")
    items = _Items(gallery, order, precision or fastest(), block_size)
    found = Found(
        torch.full((len(queries), k), -torch.inf, dtype=torch.float64),
        torch.full((len(queries), k), -1, dtype=torch.int64),
        torch.zeros(len(queries), dtype=torch.int64),
    )
    with _precision_as_asked():
        for rows in _slices(len(queries), block_size):
            asked = None if threshold is None else threshold[rows]
            part = _Part(queries[rows], asked, items, Found(*(column[rows] for column in found)))
            for columns in _slices(len(gallery), block_size):
                part.compare(columns)
    return found._replace(position=items.positions(found.position))


class _Rounded(NamedTuple):
    """Rows as they are multiplied, and how far from fixed point they are at most."""

    values: Tensor  # (rows, dim)
    length: float  # of the longest row in fixed point
    error: float  # length of the largest difference


def _float32_error(length: float, dim: int) -> float:
    """How far a row in float32 can be from fixed point: half a step of each in every number."""
    return ROUNDING[torch.float32] * (dim**0.5 + length)


def _error(queries: _Rounded, items: _Rounded) -> float:
    """By how much a product can differ from the exact similarity, whichever query and item it is of.

    With q' and g' the rounded rows, q.g - q'.g' = (q - q').g + q'.(g - g'), to which come the rounding of each
    of dim sums, in float32, and that of the result (Higham 2002, section 3.1).
    """
    dtype, dim = items.values.dtype, items.values.shape[1]
    lengths = (queries.length + queries.error) * (items.length + items.error)
    inputs = queries.error * items.length + (queries.length + queries.error) * items.error
    sums = dim * ROUNDING[torch.float32] / (1 - dim * ROUNDING[torch.float32])
    result = 0.0 if dtype == torch.float32 else 1.01 * ROUNDING[dtype]
    # The rest is room for the rounding of the comparisons themselves.
    return 1.001 * (inputs + lengths * (sums + result)) + 2.0**-20


class _Items:
    """The gallery, rounded, in the order that decides between equals."""

    def __init__(self, gallery: Tensor, order: Tensor | None, dtype: torch.dtype, block_size: int) -> None:
        self.gallery, self.order = gallery, order
        self.buffer = torch.empty(min(block_size, max(len(gallery), 1)) * block_size, dtype=dtype)
        self.rounded = _rounded(gallery, order, dtype)

    def positions(self, places: Tensor) -> Tensor:
        """Where the items at these places of the order are in the gallery."""
        return places if self.order is None else self.order[places]

    def exact(self, places: Tensor | slice) -> Tensor:
        """Items at these places of the order, in fixed point."""
        return fixed_point(self.gallery[places if self.order is None else self.order[places]])

    def in_float32(self, columns: slice) -> _Rounded:
        """Items at these places of the order, as float32 holds them."""
        values = self.gallery[columns if self.order is None else self.order[columns]].float()
        return _Rounded(values, self.rounded.length, _float32_error(self.rounded.length, values.shape[1]))


class _Part:
    """A block of queries on its way through the gallery; what it finds it writes where it is told."""

    def __init__(self, queries: Tensor, threshold: Tensor | None, items: _Items, found: Found) -> None:
        self.items, self.threshold = items, threshold
        self.similarity, self.place, self.at_least = found
        self.k = self.place.shape[1]
        self.asked, self.queries = queries, fixed_point(queries)
        self.rounded = _rounded(queries, None, items.rounded.values.dtype)
        self.error = _error(self.rounded, items.rounded)

    def compare(self, columns: slice) -> None:
        """Take the items at these places of the order into account."""
        values = self.items.rounded.values[columns]
        block = self.items.buffer[: len(self.queries) * len(values)].view(len(self.queries), len(values))
        torch.mm(self.rounded.values, values.T, out=block)
        highest = block.amax(dim=1).float()
        if self.k:
            lowest = self.similarity[:, -1].float() - self.error
            rows = (highest >= lowest).nonzero()[:, 0]
            if len(rows):
                self._improve(columns, rows, block[rows], lowest[rows])
        if self.threshold is not None:
            rows = (highest >= self.threshold.float() - self.error).nonzero()[:, 0]
            if len(rows):
                self._count(columns, rows, block[rows], self.error)

    def _improve(self, columns: slice, rows: Tensor, block: Tensor, lowest: Tensor) -> None:
        """Put items of a block, (rows, columns), among the best of these queries."""
        if block.shape[1] >= self.k:
            # k items are as similar as this, less the error; what may be more similar reaches twice less the error.
            near = block.amax(dim=1) if self.k == 1 else block.topk(self.k, dim=1).values[:, -1]
            lowest = torch.maximum(lowest, near.float() - 2 * self.error)
        offered = block >= _ceiling(lowest, block.dtype)[:, None]
        if int(offered.sum()) > MANY * block.numel():
            items = self.items.exact(columns)
            places = torch.arange(columns.start, columns.stop)
            for part in torch.split(rows, CACHED):
                self._merge(part, torch.mm(self.queries[part], items.T), places.expand(len(part), -1))
            return
        pairs = offered.nonzero(as_tuple=True)
        number, width = _count_up(pairs[0], len(rows))
        similarity = torch.full((len(rows), width), -torch.inf, dtype=torch.float64)
        similarity[pairs[0], number] = self._similarities(rows[pairs[0]], columns.start + pairs[1])
        place = torch.full((len(rows), width), -1)
        place[pairs[0], number] = columns.start + pairs[1]
        self._merge(rows, similarity, place)

    def _merge(self, rows: Tensor, similarity: Tensor, place: Tensor) -> None:
        """Keep the best of what these queries had and what they are offered, both (rows, offered)."""
        # What was found earlier comes first, so that it wins ties.
        similarity = torch.cat([self.similarity[rows], similarity], dim=1)
        place = torch.cat([self.place[rows], place], dim=1)
        for rank in range(self.k):
            # torch.topk leaves the order of ties open; max takes the first.
            value, position = similarity.max(dim=1, keepdim=True)
            self.similarity[rows, rank] = value[:, 0]
            self.place[rows, rank] = place.gather(1, position)[:, 0]
            similarity.scatter_(1, position, -torch.inf)

    def _count(self, columns: slice, rows: Tensor, block: Tensor, error: float) -> None:
        """Count the items of a block, (rows, columns), that reach the threshold of these queries."""
        assert self.threshold is not None
        threshold = self.threshold[rows]
        lowest = _ceiling(threshold.float() - error, block.dtype)[:, None]
        highest = _ceiling(threshold.float() + error, block.dtype)[:, None]
        ones = torch.empty_like(block, dtype=torch.float32)  # sums of floats are much faster than of truth values
        certain = torch.ge(block, highest, out=ones).sum(dim=1).long()
        undecided = torch.ge(block, lowest, out=ones).sum(dim=1).long() - certain
        if block.dtype != torch.float32 and (many := undecided > UNDECIDED).any():
            self._count_in_float32(columns, rows[many])
            certain[many] = undecided[many] = 0
        elif int(undecided.sum()) > MANY * block.numel():
            exact = torch.mm(self.queries[rows], self.items.exact(columns).T)
            certain, undecided = (exact >= threshold[:, None]).sum(dim=1), undecided * 0
        self.at_least[rows] += certain
        if len(left := undecided.nonzero()[:, 0]):
            block = block[left]
            pairs = ((block >= lowest[left]) & (block < highest[left])).nonzero(as_tuple=True)
            asked = left[pairs[0]]
            reached = self._similarities(rows[asked], columns.start + pairs[1]) >= threshold[asked]
            self.at_least.index_add_(0, rows[asked], reached.long())

    def _count_in_float32(self, columns: slice, rows: Tensor) -> None:
        """Count with the product that leaves fewer pairs undecided."""
        items, values = self.items.in_float32(columns), self.asked[rows].float()
        queries = _Rounded(values, self.rounded.length, _float32_error(self.rounded.length, values.shape[1]))
        self._count(columns, rows, torch.mm(values, items.values.T), _error(queries, items))

    def _similarities(self, rows: Tensor, places: Tensor) -> Tensor:
        """Exact similarities of some pairs, float64 (pairs,)."""
        result = torch.empty(len(rows), dtype=torch.float64)
        for pairs in _slices(len(rows), CACHED):
            result[pairs] = (self.queries[rows[pairs]] * self.items.exact(places[pairs])).sum(dim=1)
        return result


def _rounded(rows: Tensor, order: Tensor | None, dtype: torch.dtype) -> _Rounded:
    """Round rows, in this order, to the precision of the product.

    Raises ValueError if they are not finite, or longer than a unit vector can be.
    """
    values = rows if order is None and rows.dtype == dtype else torch.empty(rows.shape, dtype=dtype)
    length = error = 0.0
    for part in _slices(len(rows), CACHED):
        taken = rows[part if order is None else order[part]]
        exact = fixed_point(taken)
        if values is not rows:
            values[part] = taken
        longest = float(exact.norm(dim=1).amax())
        if not longest <= LONGEST:
            raise ValueError(f"embeddings must be finite unit vectors; one has length {longest:g}")
        length = max(length, longest)
        error = max(error, float((exact - values[part]).norm(dim=1).amax()))
    return _Rounded(values, length, error)


def _ceiling(bounds: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of a precision that reach these bounds, so that comparing with them is comparing exactly."""
    nearest = bounds.to(dtype)
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.float() < bounds, above, nearest)


def _count_up(rows: Tensor, count: int) -> tuple[Tensor, int]:
    """Number the entries of each row, given each entry's row in ascending order; and the largest number of entries."""
    sizes = rows.bincount(minlength=count)
    return torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows], int(sizes.amax())


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@contextmanager
def _precision_as_asked() -> Iterator[None]:
    """Undo what would let float32 products be computed in less, beyond the error that is reckoned with."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        matmul.fp32_precision = before
