"""Which rows an epoch uses, and in which order."""

from __future__ import annotations

import torch

from saferclip.training import curriculum

DIFFICULTY = torch.tensor([2, 0, 1, 0, 2, 1, 0])


def test_progressive_admits_harder_rows_epoch_by_epoch() -> None:
    rows = [curriculum.admitted(DIFFICULTY, "progressive", epoch).tolist() for epoch in (1, 2, 3, 4, 9)]
    everything = list(range(7))
    assert rows == [[1, 3, 6], [1, 2, 3, 5, 6], everything, everything, everything]


def test_reversed_admits_easier_rows_epoch_by_epoch() -> None:
    rows = [curriculum.admitted(DIFFICULTY, "reversed", epoch).tolist() for epoch in (1, 2, 3, 4, 9)]
    everything = list(range(7))
    assert rows == [[0, 4], [0, 2, 4, 5], everything, everything, everything]


def test_no_epoch_is_empty_where_terciles_are() -> None:
    """A table of two rows has none that is hard, one of one row none that is medium either."""
    two, one = torch.tensor([1, 0]), torch.tensor([0])
    assert [curriculum.admitted(two, "reversed", epoch).tolist() for epoch in (1, 2, 3)] == [[0], [0, 1], [0, 1]]
    assert curriculum.admitted(one, "reversed", 1).tolist() == [0]


def test_without_curriculum_all_rows_are_used_from_the_start() -> None:
    assert curriculum.admitted(DIFFICULTY, "none", 1).tolist() == list(range(7))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = torch.arange(100, 200)
    orders = {(seed, epoch): curriculum.shuffled(rows, seed, epoch) for seed in (0, 1) for epoch in (1, 2)}
    torch.manual_seed(5)
    for (seed, epoch), order in orders.items():
        assert torch.equal(curriculum.shuffled(rows, seed, epoch), order)
        assert torch.equal(order.sort().values, rows)
    assert len({tuple(order.tolist()) for order in [*orders.values(), rows]}) == 5
