"""The approximate index, by real faiss, against comparing every pair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saferclip import io
from saferclip.config import ApproximateSettings, MiningSettings
from saferclip.mining import approximate, embedding, nearest

SETTINGS = ApproximateSettings(recall=0.9, sample=100)
COUNT, DIM = 2000, 24


@pytest.fixture(scope="module")
def captions() -> tuple[Tensor, Tensor, list[str]]:
    """Unsafe and safe rows in few directions of many, as captions are; and ids in no order."""
    generator = torch.Generator().manual_seed(0)
    meanings, spread = torch.randn(COUNT, 6, generator=generator), torch.randn(6, DIM, generator=generator)
    other = meanings + 0.4 * torch.randn(COUNT, 6, generator=generator)
    unsafe, safe = (torch.nn.functional.normalize(torch.tanh(rows @ spread), dim=-1) for rows in (other, meanings))
    return unsafe, safe, [f"id-{name:04d}" for name in np.random.default_rng(1).permutation(COUNT)]


def test_as_many_find_their_nearest_as_asked_for(captions: tuple[Tensor, Tensor, list[str]]) -> None:
    unsafe, safe, ids = captions
    found = approximate.nearest(SETTINGS, unsafe, safe, ids, block_size=500)
    similarities = unsafe.double().numpy() @ safe.double().numpy().T
    own = similarities[np.arange(COUNT), found.target.numpy()]
    np.testing.assert_allclose(found.similarity.numpy(), own, atol=1e-6)
    share = 100 * float((own >= similarities.max(axis=1) - 1e-9).mean())
    assert 80 < share < 100  # fewer lists than all were looked at, and enough
    described = found.description
    assert described["recall"] == pytest.approx(share, abs=8)  # of a sample of 100
    assert described["checked"] == SETTINGS.sample
    assert 1 < described["probes"] < described["lists"]


def test_more_recall_takes_more_lists(captions: tuple[Tensor, Tensor, list[str]]) -> None:
    probes = [
        approximate.nearest(ApproximateSettings(recall=recall, sample=100), *captions, block_size=500).description[
            "probes"
        ]
        for recall in (0.2, 0.999)
    ]
    assert probes[0] < probes[1]


def test_equal_candidates_go_to_the_smallest_id() -> None:
    safe = torch.eye(4).repeat(3, 1)
    ids = list("lkjihgfedcba")
    found = approximate.nearest(SETTINGS, torch.eye(4), safe, ids, block_size=5)
    assert [ids[row] for row in found.target] == ["d", "c", "b", "a"]
    assert found.similarity.tolist() == [1, 1, 1, 1]


@pytest.fixture
def mined(
    tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path
) -> Callable[[ApproximateSettings | None], Path]:
    """A function that mines a small table and returns the folder of what it wrote."""
    plain = MiningSettings(block_size=4, batch_size=8)
    train = tiny_quadruples(10, "train")
    embedding.embed(plain, tiny_clip_folder, train, tiny_quadruples(10, "validation"), tmp_path)

    def mine(settings: ApproximateSettings | None) -> Path:
        folder = tmp_path / ("exact" if settings is None else "approximate")
        chosen = plain.model_copy(update={"approximate": settings})
        nearest.mine(chosen, train, tmp_path / embedding.FILE, folder)
        return folder

    return mine


def test_the_summary_says_how_well_an_index_searched(mined: Callable[[ApproximateSettings | None], Path]) -> None:
    """With so few captions it is one list, searched whole: the same neighbours, and a recall of 100 percent."""
    exact, other = mined(None), mined(SETTINGS)
    assert io.read_table(other / "neighbours.parquet").equals(io.read_table(exact / "neighbours.parquet"))
    summary = io.read_json(other / "summary.json")
    assert summary.pop("approximate") == {"lists": 1, "probes": 1, "recall": 100, "checked": 5}
    assert summary == io.read_json(exact / "summary.json")


def test_without_faiss_its_extra_is_named(
    mined: Callable[[ApproximateSettings | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        io.DataError, match=r"pip install 'saferclip\[approximate\]', or leave out 'mining.approximate'"
    ):
        mined(SETTINGS)
    assert (mined(None) / "neighbours.parquet").exists()
