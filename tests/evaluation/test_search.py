"""Search against sorting, where ties are everywhere."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saferclip.evaluation.search import Gallery, search_for_one, search_for_safe

ROW = st.lists(st.sampled_from([-0.5, 0.0, 0.5]), min_size=2, max_size=2)


def order(query: list[float], gallery: list[list[float]], unsafe: int, correct: int | None) -> list[int]:
    """All items, best first: by similarity, then unsafe items, then safe ones, the correct one last."""

    def key(place: int) -> tuple[float, bool, bool, int]:
        similarity = sum(a * b for a, b in zip(query, gallery[place], strict=True))
        return -similarity, place == correct, place >= unsafe, place

    return sorted(range(len(gallery)), key=key)


@settings(max_examples=80, deadline=None)
@given(
    queries=st.lists(ROW, min_size=1, max_size=5),
    gallery=st.lists(ROW, min_size=1, max_size=8),
    block_size=st.integers(1, 9),
    data=st.data(),
)
def test_one_correct_item(
    queries: list[list[float]], gallery: list[list[float]], block_size: int, data: st.DataObject
) -> None:
    unsafe = data.draw(st.integers(0, len(gallery) - 1))
    correct = data.draw(
        st.lists(st.integers(unsafe, len(gallery) - 1), min_size=len(queries), max_size=len(queries)), label="correct"
    )
    ids = [f"item {place}" for place in range(len(gallery))]
    query_ids = [f"query {place}" for place in range(len(queries))]
    items = Gallery(torch.tensor(gallery), ids, unsafe)
    hits = search_for_one("there", torch.tensor(queries), query_ids, items, torch.tensor(correct), block_size)
    for row, query, place in zip(hits.rows(), queries, correct, strict=True):
        expected = order(query, gallery, unsafe, place)
        assert row["rank"] == expected.index(place) + 1
        assert row["top_id"] == ids[expected[0]]
        assert row["top_unsafe"] == (expected[0] < unsafe)
        assert row["similarity"] == sum(a * b for a, b in zip(query, gallery[expected[0]], strict=True))
    assert [row["query_id"] for row in hits.rows()] == query_ids
    assert hits.counts == {"there/queries": len(queries), "there/gallery": len(gallery)}


@settings(max_examples=80, deadline=None)
@given(
    queries=st.lists(ROW, min_size=1, max_size=5),
    gallery=st.lists(ROW, min_size=1, max_size=8),
    block_size=st.integers(1, 9),
    data=st.data(),
)
def test_any_safe_item(
    queries: list[list[float]], gallery: list[list[float]], block_size: int, data: st.DataObject
) -> None:
    unsafe = data.draw(st.integers(0, len(gallery) - 1))
    ids = [f"item {place}" for place in range(len(gallery))]
    items = Gallery(torch.tensor(gallery), ids, unsafe)
    hits = search_for_safe("there", torch.tensor(queries), ids[:1] * len(queries), items, block_size)
    for row, query in zip(hits.rows(), queries, strict=True):
        expected = order(query, gallery, unsafe, correct=None)
        assert row["rank"] == 1 + next(rank for rank, place in enumerate(expected) if place >= unsafe)
        assert row["top_id"] == ids[expected[0]]
        assert row["top_unsafe"] == (expected[0] < unsafe) == (row["rank"] > 1)
